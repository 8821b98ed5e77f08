"""Print how much faster a training step of microCLIP is than the released order of operations.

The official step is written here from the method's description: ten Pillow views of each file;
eight crops, the weak view and the strong view through all blocks with all tokens, the value path in
every block although only the last one's is used; the three maps on every patch. Its backward pass
builds no second graph and anomaly detection is off, both of which the released code leaves on, so
the ratios are lower bounds. Ours are the trainer's own step and views, in turn with it. Weights are
random; ViT-B/32's shape, and icon-clip's. `prior: frozen` has no crops in a step. bf16 is skipped
on a CPU without instructions for it. `compiled` adds the same steps with `compile: default`, whose
compiling takes minutes. `PYTHONPATH=<another copy> python benchmarks/step.py` measures that copy.

Usage: python benchmarks/step.py [rounds] [images, B/32] [images, icon-clip] [compiled]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from loader import official, write_photographs
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional

import microclip
from microclip.adaptation.schedules import OptimizerRecipe, cosine
from microclip.adaptation.training import Trainer
from microclip.data.augmentation import StrongTransform
from microclip.data.loading import TrainingViews, UnlabelledImages, ViewBatch, ViewRecipe
from microclip.data.store import open_store, write_store
from microclip.methods.microclip import KnowledgeTeacher, MicroClipSettings, SelfTrainingLosses
from microclip.model.backbone import Backbone, Tokenizer, from_open_clip
from microclip.model.compilation import compiled
from microclip.model.token_fusion import TokenFusion

N_CLASSES = 40
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
TOWERS: dict[str, dict[str, Any]] = {
    "ViT-B/32": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "ViT-B/16": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "icon-clip": {
        "image_size": 56,
        "layers": 6,
        "width": 128,
        "head_width": 32,
        "patch_size": 8,
    },
}
PHOTOGRAPH = {"ViT-B/32": (500, 375), "ViT-B/16": (500, 375), "icon-clip": (96, 96)}


@dataclass(frozen=True)
class Way:
    """How our step is computed."""

    prior: Literal["online", "frozen"] = "online"
    precision: str = "fp32"
    compile: str = "off"
    device: str = "cpu"
    n_classes: int = N_CLASSES

    def __str__(self) -> str:
        """Return "online, fp32", and that it is compiled."""
        return f"{self.prior}, {self.precision}" + ("" if self.compile == "off" else ", compiled")


def tower(
    name: str, text: Mapping[str, int] = TEXT, tokenizer: Tokenizer | None = None
) -> Backbone:
    """A network of this shape with random weights, the same at each call."""
    torch.manual_seed(0)
    is_vit = name.startswith("ViT")
    dim = 512 if is_vit else 128
    network = CLIP(dim, TOWERS[name], text, quick_gelu=is_vit)  # type: ignore[arg-type]
    return from_open_clip(network, tokenizer)


class OfficialStep:
    """The released order of operations on a batch of files."""

    def __init__(
        self,
        name: str,
        files: list[Path],
        *,
        device: str = "cpu",
        n_classes: int = N_CLASSES,
    ) -> None:
        self.files, self.size = files, TOWERS[name]["image_size"]
        self.strong = StrongTransform(self.size)
        visual = tower(name).visual.requires_grad_(requires_grad=False).to(device)
        self.visual, width = visual, visual.conv1.out_channels
        self.maps = [nn.Parameter(torch.eye(width, device=device)) for _ in range(3)]
        start = torch.randn(n_classes, visual.proj.shape[1], device=device)
        self.classifier = nn.Parameter(start)
        self.knowledge = functional.normalize(torch.randn_like(self.classifier), dim=-1)
        norms = [m for m in visual.modules() if isinstance(m, nn.LayerNorm)]
        trained = [p for m in norms for p in m.parameters()]
        for parameter in trained:
            parameter.requires_grad = True
        self.optimizer = torch.optim.AdamW([*trained, *self.maps, self.classifier], lr=1e-4)

    def __call__(self) -> None:
        """Load the views, teach, learn."""
        self.learn(torch.stack([self.views(file) for file in self.files]))

    def views(self, file: Path) -> Tensor:
        """The ten views of a file: weak, strong, crops."""
        return torch.stack(official(file, self.strong, self.size))

    def learn(self, views: Tensor) -> None:
        """Teach and learn from the views of a batch, on the step's device."""
        weak, strong, crops = views[:, 0], views[:, 1], views[:, 2:]
        with torch.no_grad():
            coarse, fine = self.predict(weak)
            parts = self.encode(crops.flatten(0, 1))[0].unflatten(0, crops.shape[:2])
            weights = torch.einsum("b d, b n d -> b n", coarse, parts).softmax(dim=-1)
            mixed = functional.normalize(torch.einsum("b n, b n d -> b d", weights, parts), dim=-1)
            own = functional.normalize(coarse + fine, dim=-1) @ self.vectors().T
            labels = (mixed @ self.knowledge.T + own).argmax(dim=-1)
        coarse, fine = self.predict(strong)
        logits = 50 * (coarse + fine) @ self.vectors().T
        mean = logits.softmax(dim=-1).mean(dim=0)
        loss = functional.cross_entropy(logits, labels) - 2 * mean.log().mean()
        self.optimizer.zero_grad()
        torch.autograd.backward([loss])
        self.optimizer.step()

    def vectors(self) -> Tensor:
        """Unit class vectors."""
        return functional.normalize(self.classifier, dim=-1)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class token's embedding, and the patches by the value path."""
        v = self.visual
        patches = v.conv1(images).flatten(2).mT
        cls = v.class_embedding.expand(len(images), 1, -1)
        x = v.ln_pre(torch.cat([cls, patches], dim=1) + v.positional_embedding)
        tokens = x
        for block in v.transformer.resblocks:
            normed, width = block.ln_1(x), x.shape[-1]
            attention = block.attn
            rows = slice(2 * width, None)
            value = functional.linear(
                normed, attention.in_proj_weight[rows], attention.in_proj_bias[rows]
            )
            tokens = x + attention.out_proj(value)
            tokens = tokens + block.mlp(block.ln_2(tokens))
            x = x + attention(normed, normed, normed, need_weights=False)[0]
            x = x + block.mlp(block.ln_2(x))
        embedding = functional.normalize(v.ln_post(x)[:, 0] @ v.proj, dim=-1)
        return embedding, v.ln_post(tokens)[:, 1:]

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse and fine embeddings."""
        coarse, tokens = self.encode(images)
        mask = self.cut(tokens.detach()).float()
        query = torch.einsum("b n, b n d -> b d", mask / mask.sum(dim=-1, keepdim=True), tokens)
        q, k, w = (m.T for m in self.maps)
        padded = functional.pad(tokens, (0, 0, 0, 1))
        scores = torch.einsum("b d, b n d -> b n", query @ q, padded @ k)
        attention = (scores / tokens.shape[-1] ** 0.5).softmax(dim=-1)
        pooled = torch.einsum("b n, b n d -> b d", attention, padded @ w)
        return coarse, functional.normalize(pooled @ self.visual.proj, dim=-1)

    @staticmethod
    def cut(tokens: Tensor) -> Tensor:
        """The salient side, in float32, with the solver's sign."""
        weights = torch.where(tokens @ tokens.mT > 0.2, 1.0, 1e-6)
        degrees = weights.sum(dim=-1)
        roots = 1 / (degrees.sqrt() + 1e-6)
        matrix = roots[:, :, None] * (torch.diag_embed(degrees) - weights) * roots[:, None]
        vector = torch.linalg.eigh(matrix).eigenvectors[..., 1]
        mask = vector > vector.std(dim=-1, keepdim=True)
        seed = vector.abs().argmax(dim=-1, keepdim=True)
        return mask ^ ~mask.gather(-1, seed)


def our_trainer(
    name: str, images: UnlabelledImages, way: Way, *, batch_size: int, epochs: int = 1000
) -> Trainer[ViewBatch]:
    """The trainer of microCLIP on `images`."""
    settings = MicroClipSettings(batch_size=batch_size, epochs=epochs, prior=way.prior)
    network = compiled(tower(name), way.compile).to(way.device)
    fusion = TokenFusion(network, torch.randn(way.n_classes, network.embedding_dim))
    knowledge = functional.normalize(torch.randn(way.n_classes, network.embedding_dim), dim=-1)
    is_frozen = way.prior == "frozen"
    cached = torch.randn(len(images), way.n_classes).to(way.device) if is_frozen else None
    n_crops = 0 if is_frozen else settings.n_crops
    recipe = ViewRecipe(0, network.image_size, network.mean, network.std, n_crops=n_crops)
    views = TrainingViews(images, recipe, batch_size=batch_size, device=way.device)
    return Trainer(
        fusion,
        KnowledgeTeacher(fusion, knowledge.to(way.device), settings, cached),
        SelfTrainingLosses(fusion, settings),
        OptimizerRecipe(cosine(1e-4), epochs=epochs, weight_decay=0.1),
        views,
        settings={},
        precision=way.precision,
    )


def our_step(name: str, images: UnlabelledImages, way: Way) -> Callable[[], None]:
    """The trainer's step on the views of all images, an epoch of one step at each call."""
    trainer = our_trainer(name, images, way, batch_size=len(images))
    batches, generator = trainer.views.batches(1, 1000), torch.Generator()

    def step() -> None:
        trainer._step(next(batches), generator)

    return step


def measure(name: str, n_images: int, n_rounds: int, compile_modes: Sequence[str]) -> None:
    """Print the rows of one network."""
    precisions = ["fp32", *(["bf16"] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else [])]
    with tempfile.TemporaryDirectory() as folder:
        files = write_photographs(Path(folder), *PHOTOGRAPH[name], n_images)
        write_store(files, Path(folder) / "store", "made")
        images = UnlabelledImages(open_store(Path(folder) / "store"), tuple(range(n_images)))
        ways: dict[str, Callable[[], object]] = {"official": OfficialStep(name, files)}
        for mode, precision in product(compile_modes, precisions):
            for one in (Way("online", precision, mode), Way("frozen", precision, mode)):
                ways[str(one)] = our_step(name, images, one)
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for way in list(ways)[1:]:
            ways[way]()  # what is prepared once
        for _ in range(n_rounds):
            for way, step in ways.items():
                cpu, wall = time.process_time(), time.perf_counter()
                step()
                now = time.process_time() - cpu, time.perf_counter() - wall
                taken[way].append(now)
    cpu, wall = ({w: statistics.median(t[k] for t in taken[w]) for w in ways} for k in (0, 1))
    for way in ways:
        print(
            f"| {name}, {n_images} images | {way} | {1000 * cpu[way] / n_images:.0f} | "
            f"{cpu['official'] / cpu[way]:.2f} | {wall['official'] / wall[way]:.2f} |",
            flush=True,
        )


def main(
    n_rounds: int = 2,
    n_photographs: int = 2,
    n_icons: int = 16,
    compile_modes: Sequence[str] = ("off",),
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    print(f"{Path(microclip.__file__).parent.parent.name}, one thread, median of {n_rounds}\n")
    print("| Step | Way | CPU ms an image | Official / this (CPU) | (wall) |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name, n_images in (("icon-clip", n_icons), ("ViT-B/32", n_photographs)):
        measure(name, n_images, n_rounds, compile_modes)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:] if argument != "compiled"]
    main(*numbers, compile_modes=("off", "default") if "compiled" in sys.argv else ("off",))
