"""The recipe of the demo's latent-diffusion editor: train its autoencoder, then its denoiser, on drawn faces.

    python examples/train_demo_diffusion.py --output-dir out --minutes 14

works for so many minutes and stops; the same command goes on from there, until "final" is printed and
`model.safetensors`, `recipe.json` (settings, log, figures on unseen faces) and `samples.png` are written. The shipped
weights took four such pieces on a third of one core. The autoencoder first minimises the L1 distance, with more weight
where glasses and mouths are; then a patch discriminator joins in. The denoiser learns flow matching (arXiv 2210.02747):
the velocity from the latents of the face with the labels asked for to noise, given those of the photo.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from train_demo_editor import COMBINATIONS, FacePool, PatchDiscriminator, draw_samples

from loraguard.files import whole_files, writable_folder, write_json
from loraguard.generators.diffusion.demo import DemoDiffusion
from loraguard.metrics import psnr
from loraguard.pixels import from_bytes

STATE = "state.pt"


class Training:
    """All that a piece hands on to the next."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args, self.editor, self.critic = args, DemoDiffusion(), PatchDiscriminator(num_labels=0)
        self.parts = {"autoencoder": nn.ModuleList([self.editor.encoder, self.editor.decoder]),
                      "denoiser": self.editor.denoiser}  # fmt: skip
        self.optimizers = {n: torch.optim.Adam(p.parameters(), betas=(0.9, 0.99)) for n, p in self.parts.items()}
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), 4e-4, betas=(0.5, 0.99))
        self.stream = torch.Generator().manual_seed(args.seed)
        self.steps = {"autoencoder": 0, "denoiser": 0}
        self.log: list[dict[str, Any]] = []
        self.latents = torch.empty(0)
        self.pool = FacePool("train", args.seed, args.faces, min(300, args.faces))
        self.unseen = FacePool("test", args.seed, args.test_faces, args.test_faces)

    def stateful(self) -> dict[str, Any]:
        """What has a state dict."""
        return {"editor": self.editor, "critic": self.critic, "critic_optimizer": self.critic_optimizer,
                **self.optimizers}  # fmt: skip

    def save(self, path: Path) -> None:
        """Write where training is."""
        state: dict[str, Any] = {name: one.state_dict() for name, one in self.stateful().items()}
        state |= {"steps": self.steps, "log": self.log, "stream": self.stream.get_state(), "drawn": self.pool.drawn,
                  "random": torch.get_rng_state()}  # fmt: skip
        with whole_files(path) as draft:
            torch.save(state, draft / STATE)

    def load(self, path: Path) -> None:
        """Go on from what :meth:`save` wrote."""
        state = torch.load(path / STATE, weights_only=True)
        for name, one in self.stateful().items():
            one.load_state_dict(state[name])
        self.steps, self.log = state["steps"], state["log"]
        self.stream.set_state(state["stream"])
        torch.set_rng_state(state["random"])
        while self.pool.drawn < min(state["drawn"], self.args.redraw):
            self.pool.add()

    def step(self, part: str, number: int) -> float:
        """One step of a part; its number is from 1."""
        optimizer, total = self.optimizers[part], getattr(self.args, f"{part}_steps")
        for group in optimizer.param_groups:
            group["lr"] = self.args.learning_rate * min(number / 100, 1) * (1 - 0.98 * number / total)
        loss = self.reconstruction(number) if part == "autoencoder" else self.flow()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parts[part].parameters(), 1.0)
        optimizer.step()
        return loss.item()

    def reconstruction(self, number: int) -> Tensor:
        """The autoencoder's loss; latents are kept near 0, and the decoder learns to bear a little noise on them."""
        args = self.args
        _, _, images, details = self.pool.batch(args.batch_size, self.stream)
        latents = self.editor.encoder(images)
        outputs = self.editor.decoder(latents + args.latent_noise * torch.randn_like(latents))
        loss = ((outputs - images).abs() * (1 + args.detail_weight * details)).mean() + 1e-3 * latents.square().mean()
        if number > args.adversarial_from:
            none = images.new_zeros(len(images), 0)
            real, made = self.critic(images, none), self.critic(outputs.detach(), none)
            self.critic_optimizer.zero_grad()
            (F.relu(1 - real).mean() + F.relu(1 + made).mean()).backward()
            self.critic_optimizer.step()
            loss = loss - args.adversarial_weight * self.critic(outputs, none).mean()
        return loss

    @torch.no_grad()
    def encode_faces(self) -> None:
        """Draw the faces that the denoiser learns from, and encode each with every combination of labels, once."""
        while self.pool.drawn < self.args.denoiser_faces:
            self.pool.add()
        if self.steps["denoiser"] == 0:
            self.normalize()
        faces = self.pool.images[: self.args.denoiser_faces]
        latents = [self.editor.encode(from_bytes(some.flatten(0, 1))) for some in faces.split(16)]
        self.latents = torch.cat(latents).unflatten(0, (len(faces), -1))

    def flow(self) -> Tensor:
        """The denoiser's loss: z_s = (1 - s) z + s n has velocity n - z."""
        size = self.args.denoiser_batch_size
        rows = torch.randint(len(self.latents), (size,), generator=self.stream)
        source, which = torch.randint(len(COMBINATIONS), (2, size), generator=self.stream)
        photo, target = self.latents[rows, source], self.latents[rows, which]
        bare = which // 4 * 4
        changes = (self.latents[rows, bare] - self.latents[rows, bare + 3]).square().mean(1, keepdim=True).sqrt()
        noise, times = torch.randn_like(target), torch.rand(size)
        noised = torch.lerp(target, noise, times[:, None, None, None])
        error = (self.editor.denoiser(noised, times, photo, COMBINATIONS[which]) - (noise - target)).square()
        return (error * (1 + self.args.detail_weight * changes.clamp_max(1))).mean()

    @torch.no_grad()
    def normalize(self) -> None:
        """Measure the shift and the scale that give latents mean 0 and standard deviation 1."""
        images = self.pool.batch(256, torch.Generator().manual_seed(2))[0]
        latents = self.editor.encoder(images)
        self.editor.shift.copy_(latents.mean((0, 2, 3), keepdim=True))
        self.editor.scale.copy_(1 / latents.std((0, 2, 3), keepdim=True))

    @torch.no_grad()
    def measure(self, n: int) -> dict[str, float]:
        """PSNR of round trips, and of edits against the drawn truth, on faces never trained on."""
        images, labels, truth, details = self.unseen.batch(n, torch.Generator().manual_seed(1))
        around, outputs = self.editor.decode(self.editor.encode(images)), self.editor(images, labels)
        error = ((outputs - truth).abs() * details).sum() / details.sum() / 3
        return {"round_trip_db": psnr(around, images).mean().item(), "edit_db": psnr(outputs, truth).mean().item(),
                "l1_details": error.item()}  # fmt: skip


def train(training: Training, out: Path, until: float) -> bool:
    """Train until it is done (True) or time is up (False)."""
    args = training.args
    for part, total in (("autoencoder", args.autoencoder_steps), ("denoiser", args.denoiser_steps)):
        if part == "denoiser" and training.steps[part] < total:
            training.encode_faces()
        while training.steps[part] < total:
            if time.monotonic() > until:
                return False
            training.steps[part] += 1
            if part == "autoencoder":
                training.pool.add()
            loss = training.step(part, training.steps[part])
            if training.steps[part] % args.log_every == 0:
                figures = training.measure(min(64, args.test_faces))
                training.log.append({"part": part, "step": training.steps[part], "loss": loss, **figures})
                print(training.log[-1], flush=True)
    return True


def main() -> None:
    """Read the settings, train, measure, write."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=14.0, help="of this piece")
    parser.add_argument("--autoencoder-steps", type=int, default=1400)
    parser.add_argument("--denoiser-steps", type=int, default=1400)
    parser.add_argument("--adversarial-from", type=int, default=1150, help="the step at which the discriminator joins")
    parser.add_argument("--adversarial-weight", type=float, default=0.02)
    parser.add_argument("--latent-noise", type=float, default=0.05)
    parser.add_argument("--detail-weight", type=float, default=3.0, help="of glasses and mouths, over 1 elsewhere")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--denoiser-batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--faces", type=int, default=4096, help="how many of the faces, one new a step, are kept")
    parser.add_argument("--redraw", type=int, default=500, help="how many of them a further piece draws again")
    parser.add_argument("--denoiser-faces", type=int, default=500, help="that the denoiser learns from")
    parser.add_argument("--test-faces", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out = writable_folder(args.output_dir)
    training = Training(args)
    if (out / STATE).is_file():
        training.load(out)
    done = train(training, out, started + 60 * args.minutes)
    training.save(out)
    draw_samples(training.editor, out / "samples.png")
    print("final" if done else "more to do", training.steps, training.measure(args.test_faces))
    if done:
        half = {name: value.half() for name, value in training.editor.state_dict().items()}
        training.editor.load_state_dict(half)
        settings = {key: value for key, value in vars(args).items() if key not in ("output_dir", "minutes")}
        recipe = {"settings": settings, "figures": training.measure(args.test_faces), "log": training.log}
        with whole_files(out) as draft:
            save_file(half, draft / "model.safetensors")
            write_json(draft / "recipe.json", recipe)


if __name__ == "__main__":
    main()
