"""Gates: what scales the update of an adapted layer, and learns to. One gate, one file; their names are in `registry`.

Below, `u = s * (B A x + b)` is the update of LoRA; `b` is there with `lora_bias=True` alone. *Static* gates do not
look at `u`, so that they can be merged into the base layer's weight. Every gate starts at `sigmoid(init)` everywhere.

| `gate_type` | update | parameters | mergeable |
|---|---|---|---|
| `"scalar"` | `sigmoid(g) * u`, of the paper (arXiv 2510.03747) | 1 | yes |
| `"channel"` | `sigmoid(g[feature]) * u` | out | yes |
| `"rank"` | `s * (B (sigmoid(g) * A x) + b)`, one number for each rank | r | yes |
| `"input"` | `sigmoid(w * mean(u) + c) * u`, the mean over each sample | 2 | no |
| `"input_channel"` | `sigmoid(w u + c) * u`, a 1x1 convolution, for each feature and position | out * out + out | no |
| `"none"` | `u`: plain LoRA | 0 | yes |
"""
