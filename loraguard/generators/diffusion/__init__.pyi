from .autoencoder import LatentAutoencoder as LatentAutoencoder
from .base import LatentDiffusion as LatentDiffusion
from .base import LatentNetwork as LatentNetwork
from .demo import DemoDiffusion as DemoDiffusion
from .editors import Inpainter as Inpainter
from .editors import InstructEditor as InstructEditor
from .editors import LatentEditor as LatentEditor
from .patches import save_by_component as save_by_component
