"""The trainer's hooks carry methods that are not microCLIP, on toy networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from microclip.adaptation.losses import Losses
from microclip.adaptation.schedules import OptimizerRecipe, constant
from microclip.adaptation.teacher import FixedLabels, Teacher, Teaching
from microclip.adaptation.training import Trainer
from tests.adaptation.test_training import Journal

C, D, N = 3, 4, 10


@dataclass(frozen=True)
class Rows:
    """A batch of embeddings: no image at all, as in a training on sentences."""

    indices: Tensor
    values: Tensor


class Table:
    """Passes over a fixed matrix of embeddings, four at a time, in order."""

    n_batches, seed, device = 3, 0, torch.device("cpu")

    def __init__(self) -> None:
        self.values = torch.randn(N, D, generator=torch.Generator().manual_seed(1))

    def identity(self) -> dict[str, object]:
        return {"rows": N}

    def batches(self, first_epoch: int, last_epoch: int) -> Iterator[Rows]:
        for _ in range(first_epoch, last_epoch + 1):
            for indices in torch.arange(N).split(4):
                yield Rows(indices, self.values[indices])


class Heads(nn.Module):
    """Two linear classifiers, `text` and `visual`, as ReCLIP's two copies."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.text = nn.Parameter(torch.randn(C, D, generator=generator))
        self.visual = nn.Parameter(torch.randn(C, D, generator=generator))

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def trained_state(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.named_parameters()}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        self.load_state_dict(state)


class PrototypeTeacher(Teacher[Rows]):
    """DPA in small: a bank written at each step, prototypes made of it when an epoch ends."""

    def __init__(self, heads: Heads, table: Table) -> None:
        self._heads = heads
        self._bank = table.values.clone()
        self._labels = (table.values @ heads.text.detach().T).argmax(-1)
        self.prototypes = self._mean()
        self.refreshed: list[int] = []

    @torch.no_grad()
    def teach(self, batch: Rows, generator: torch.Generator) -> Teaching:
        own = (batch.values @ self._heads.text.T).softmax(-1)
        image = (batch.values @ self.prototypes.T).softmax(-1)
        labels = (own + image).argmax(-1)
        features = batch.values + own @ self._heads.text  # of an encoder that moves
        self._bank[batch.indices], self._labels[batch.indices] = features, labels
        weights = own.gather(1, labels[:, None])[:, 0] / own.max(-1).values
        return Teaching(labels, weights, parts={"fusion": own.argmax(-1)})

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> None:
        self.prototypes = self._mean()
        self.refreshed.append(epoch)

    def state_dict(self) -> dict[str, Tensor]:
        return {"bank": self._bank, "labels": self._labels, "prototypes": self.prototypes}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._bank, self._labels = state["bank"], state["labels"]
        self.prototypes = state["prototypes"]

    def _mean(self) -> Tensor:
        """Mean of each class's rows; an empty class takes its text vector."""
        rows = [self._bank[self._labels == c] for c in range(C)]
        text = self._heads.text.detach()
        means = [rows[c].mean(0) if len(rows[c]) else text[c] for c in range(C)]
        return functional.normalize(torch.stack(means), dim=-1)


class SkippingTeacher(Teacher[Rows]):
    """ReCLIP in small: labels made once an epoch; a batch without agreement is skipped."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._labels = torch.zeros(N, dtype=torch.long)

    def start_epoch(self, epoch: int) -> None:
        self._labels = torch.full((N,), epoch % C)

    def teach(self, batch: Rows, generator: torch.Generator) -> Teaching | None:
        if 4 in batch.indices:  # the second batch of each pass
            return None
        return Teaching(self._labels[batch.indices])


class HeadLosses(Losses[Rows]):
    """A term for each head, as for two copies with an optimiser each; or for `names` alone."""

    def __init__(self, heads: Heads, names: tuple[str, ...] = ("text", "visual")) -> None:
        self._heads, self._names = heads, names

    def terms(
        self, batch: Rows, teaching: Teaching, generator: torch.Generator
    ) -> dict[str, Tensor]:
        assert teaching.labels is not None
        weights = 1.0 if teaching.weights is None else teaching.weights
        found = {}
        for name in self._names:
            logits = batch.values @ getattr(self._heads, name).T
            each = functional.cross_entropy(logits, teaching.labels, reduction="none")
            found[name] = (weights * each).mean()
        return found


SGD = OptimizerRecipe(constant(0.1), epochs=3, kind="sgd", weight_decay=0.01)


def trainer(
    teacher: Teacher[Rows], heads: Heads, table: Table, recipe: OptimizerRecipe = SGD
) -> Trainer[Rows]:
    return Trainer(heads, teacher, HeadLosses(heads), recipe, table, settings={"toy": 1})


def test_a_teacher_refreshes_its_prototypes_when_an_epoch_ends() -> None:
    heads, table = Heads(), Table()
    teacher = PrototypeTeacher(heads, table)
    before, journal = teacher.prototypes.clone(), Journal()
    trainer(teacher, heads, table).train(journal)
    assert teacher.refreshed == [1, 2, 3]
    assert not torch.equal(teacher.prototypes, before)
    assert set(journal.labels[0]) == {"fusion", "mix"}
    row = journal.rows[3]
    assert row["loss"] == pytest.approx(row["loss_text"] + row["loss_visual"])


def test_a_teacher_with_a_memory_resumes_with_the_same_bits(tmp_path: Path) -> None:
    heads, table = Heads(), Table()
    unbroken = PrototypeTeacher(heads, table)
    trainer(unbroken, heads, table).train(Journal())

    stopped = Heads()
    with pytest.raises(KeyboardInterrupt):
        trainer(PrototypeTeacher(stopped, table), stopped, table).train(
            Journal(stop_after=2), tmp_path
        )
    again, journal = Heads(), Journal()
    teacher = PrototypeTeacher(again, table)
    trainer(teacher, again, table).train(journal, tmp_path)
    assert list(journal.rows) == [3]
    assert torch.equal(teacher.prototypes, unbroken.prototypes)
    for name, value in heads.trained_state().items():
        assert torch.equal(value, again.trained_state()[name]), name


def test_a_part_that_saves_but_cannot_restore_is_refused(tmp_path: Path) -> None:
    class Forgetful(SkippingTeacher):
        def state_dict(self) -> dict[str, Tensor]:
            return {"labels": torch.zeros(N)}

    table = Table()
    with pytest.raises(KeyboardInterrupt):
        trainer(Forgetful(table), Heads(), table).train(Journal(stop_after=1), tmp_path)
    with pytest.raises(TypeError, match="Forgetful saves .*labels.* write its"):
        trainer(Forgetful(table), Heads(), table).train(Journal(), tmp_path)


def test_a_skipped_batch_moves_neither_weights_nor_momentum_nor_decay() -> None:
    heads, table = Heads(), Table()
    journal = Journal()
    trainer(SkippingTeacher(table), heads, table).train(journal)
    assert 4 not in journal.indices

    plain = Heads()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for epoch in (1, 2, 3):
        for indices in (torch.arange(0, 4), torch.arange(8, 10)):
            labels = torch.full((len(indices),), epoch % C)
            rows = table.values[indices]
            optimizer.zero_grad()
            for head in (plain.text, plain.visual):
                functional.cross_entropy(rows @ head.T, labels).backward()
            optimizer.step()
    for name, value in plain.trained_state().items():
        torch.testing.assert_close(heads.trained_state()[name], value)


def test_fixed_labels_with_a_budget_of_steps() -> None:
    heads, table, journal = Heads(), Table(), Journal()
    labels = torch.arange(N) % C
    recipe = OptimizerRecipe(constant(0.1), steps=5, kind="sgd")
    trainer(FixedLabels(labels), heads, table, recipe).train(journal)
    assert list(journal.rows) == [0, 1, 2]
    assert journal.indices == [*range(N), *range(8)]
    learnt = torch.cat([each["mix"] for each in journal.labels])
    assert learnt.tolist() == labels[torch.tensor(journal.indices)].tolist()


def test_two_stages_are_two_trainings_each_with_its_checkpoint(tmp_path: Path) -> None:
    """LaFTer in small: the text head on sentences, then both heads on what it says."""

    def stages(watcher: Journal, folder: Path | None) -> dict[str, Tensor]:
        heads, table = Heads(), Table()
        folders = [None if folder is None else folder / name for name in ("text", "images")]
        text = Trainer(
            heads,
            FixedLabels(torch.arange(N) % C),
            HeadLosses(heads, ("text",)),
            SGD,
            table,
            settings={"stage": "text"},
        )
        text.train(Journal(), folders[0])
        frozen = (table.values @ heads.text.detach().T).argmax(-1)
        trainer(FixedLabels(frozen), heads, table).train(watcher, folders[1])
        return heads.trained_state()

    unbroken = stages(Journal(), None)
    with pytest.raises(KeyboardInterrupt):
        stages(Journal(stop_after=1), tmp_path)
    resumed = stages(Journal(), tmp_path)
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)
