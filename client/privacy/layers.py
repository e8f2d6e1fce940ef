"""Gradients per patient from one ordinary backward pass: every layer's input and the gradient of its output are enough.

Encoders and projections run as without privacy: all patients of a chunk together, only the volumes that are there, rows told
apart by whose they are. What follows (fusion, texts, losses) runs under `vmap`, forwards only: there the first axis is the
patient's whatever a layer makes of the others, and texts, which are no patient's, have a gradient of each. Weights get no
gradient of their own: `rules` says what they get of each patient. "Book-keeping" (Bu et al. 2023, arXiv 2210.00038), with
rows instead of factors wherever a layer has many places.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from client.privacy.gradients import PatientGradients, Shell, Vectors
from client.privacy.losses import RecordLoss
from client.privacy.rules import Owners, rule_of
from client.privacy.shares import Share, merged
from configs.setting import ConfigError
from medmap_model.batch import Batch
from medmap_model.model import Embedded, MedMAP

_Layer = tuple[str, nn.Module, set[str]]  # its name, itself, which of its parameters train
_Tell = Callable[[Tensor, Tensor], None]
_TILED = (nn.Conv3d, nn.GroupNorm)  # their first axis is one of rows, of which a patient may have several


class LayerGradients(PatientGradients):
    """As `PatientGradients`, for a loss that calls `encode_dense` and, in encoders, trains layers with a rule alone.

    Raises ConfigError for an encoder with other trained parameters. A weight that is also used outside its layer's own call
    gets a wrong gradient, so the engine is tried on made-up patients first (`engines.refuse_if_wrong`).
    """

    kind = "layers"

    def __init__(self, model: MedMAP, loss: RecordLoss, parameters: list[str], *, clip_norm: float, chunk: int) -> None:
        super().__init__(model, loss, parameters, clip_norm=clip_norm, chunk=chunk)
        network = copy.copy(model)  # the same layers, and another way through them
        object.__setattr__(network, "encode_dense", self._encode)
        self._shell = Shell(network, loss)
        self._loose: list[str] = []  # parameters of no layer with a rule
        wanted: dict[str, set[str]] = {}
        for name in self.names:
            layer, _, parameter = name.rpartition(".")
            if rule_of(model.get_submodule(layer)):
                wanted.setdefault(layer, set()).add(parameter)
            elif name.startswith("encoders."):
                kind = type(model.get_submodule(layer)).__name__
                raise ConfigError(f"privacy.engine=layers: no rule for {name} of a {kind}; take privacy.engine=auto")
            elif not name.endswith(".stem"):
                self._loose.append(name)
        self._layers: list[_Layer] = [(n, model.get_submodule(n), parameters) for n, parameters in wanted.items()]
        self._shapes: dict[str, list[torch.Size]] = {}
        self._tape = _Tape(0, next(model.parameters()), [])

    def _gradients(self, trained: Vectors, constants: Vectors, part: Vectors, organ: str) -> dict[str, Share]:
        if organ not in self._shapes:  # of what leaves the layers after encoding: of one patient, the same for all
            with torch.no_grad():
                self._shapes[organ] = self._forwards(trained, {k: v[:1] for k, v in part.items()}, organ, None).shapes
        found = self._forwards(trained, part, organ, self._shapes[organ]).shares
        self._tape = _Tape(0, part["volumes"], [])  # what a patient left behind does not outlive its step
        return {name: merged(shares) for name, shares in found.items()}

    def _forwards(self, trained: Vectors, part: Vectors, organ: str, shapes: list[torch.Size] | None) -> _Tape:
        """shapes: None: to find them. Otherwise forwards and back."""
        patients = len(part["label"])
        self._tape = tape = _Tape(patients, part["volumes"], shapes or [])
        # A parameter of no layer is small: every patient has a copy.
        own = {f"model.{n}": trained[n].expand(patients, *trained[n].shape).requires_grad_() for n in self._loose}

        def of_one(own: Vectors, nudges: list[Tensor], record: Vectors) -> tuple[Tensor, list[Tensor]]:
            tape.nudges = nudges
            one = Batch(organ=organ, **{k: v[None] for k, v in record.items()})
            return functional_call(self._shell, own, (one,), tie_weights=False), [x for *_, x in tape.seen]

        with torch.set_grad_enabled(shapes is not None), self._watched():
            losses, inputs = vmap(of_one, randomness="different")(own, tape.leaves[1:], part)
            if losses.requires_grad:
                wanted = [*tape.leaves, *own.values()]
                found = torch.autograd.grad(losses.sum(), wanted, allow_unused=True)[1:]
                slopes, rest = found[: len(inputs)], found[len(inputs) :]
                for name, slope in zip(self._loose, rest, strict=True):
                    if slope is not None:
                        tape.add(name, slope)
                for (name, layer, parameters, _), x, slope in zip(tape.seen, inputs, slopes, strict=True):
                    if slope is not None:
                        tape.give(name, layer, parameters, *_rows(layer, x, slope))
        return tape

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Layers tell the tape what passes through them, and weights have no gradient; afterwards all is as it was."""
        model = cast(MedMAP, self.model)
        frozen = [p for p in model.parameters() if p.requires_grad]
        hooks = [layer.register_forward_hook(partial(self._seen, name, wanted)) for name, layer, wanted in self._layers]
        if any(n.endswith(".stem") for n in self.names):
            encoders = model.encoders.items()
            hooks += [encoder.register_forward_pre_hook(partial(self._told, trunk)) for trunk, encoder in encoders]
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_()
            for hook in hooks:
                hook.remove()

    def _encode(self, volumes: Tensor, present: Tensor, organ: str) -> Embedded:
        """In place of `MedMAP.encode_dense`, under vmap: all patients' `encode` at once."""
        return Embedded(*(*_Together.apply(volumes, present, partial(self._encode_all, organ)), None)[:2])

    def _encode_all(self, organ: str, volumes: Tensor, present: Tensor) -> Embedded:
        """Outside of vmap: (P, M, D, H, W), (P, M)."""
        model, where = cast(MedMAP, self.model), present.cpu()
        slots = model.slots(organ)
        whose = {m: where[:, i].nonzero()[:, 0] for i, m in enumerate(slots)}
        owners = {f"projections.{m}": Owners(rows, patients=len(where)) for m, rows in whose.items()}
        for trunk in {model.trunks[m] for m in slots}:  # `encode` takes an encoder's modalities one after the other
            rows = [whose[m] for m in slots if model.trunks[m] == trunk]
            owners[f"encoders.{trunk}"] = Owners(torch.cat(rows), patients=len(where), most=len(rows))
        self._tape.owners, self._tape.whose = owners, whose
        try:
            return model.encode(volumes, present, organ)
        finally:
            self._tape.owners = None

    def _seen(self, name: str, wanted: set[str], layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook: from here on the tape learns the gradient of the layer's output."""
        tape, x = self._tape, args[0].detach()
        if tape.owners is not None:  # among encoders and projections, all patients together
            owners = tape.owners[".".join(name.split(".")[:2])]
            tell = partial(tape.give, name, layer, wanted, owners)
            return _Tap.apply(output, tape.leaves[0], x, tell, not output._is_view())
        tape.seen.append((name, layer, wanted, x))
        if len(tape.seen) <= len(tape.nudges):
            return output + tape.nudges[len(tape.seen) - 1]
        tape.shapes.append(output.shape)
        return output

    def _told(self, trunk: str, encoder: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of a shared encoder: what tells it each volume's modality is a row of that modality's `stem`."""
        tape = self._tape
        if len(args) == 1:
            return args
        model = cast(MedMAP, self.model)
        mine = {m: rows for m, rows in tape.whose.items() if model.trunks[m] == trunk}

        def give(_: Tensor, slope: Tensor) -> None:
            parts = slope.split([len(rows) for rows in mine.values()])
            for (modality, rows), part in zip(mine.items(), parts, strict=True):
                if len(rows) and f"projections.{modality}.stem" in self.names:
                    owners = Owners(rows, patients=len(tape.leaves[0]))
                    tape.add(f"projections.{modality}.stem", owners.summed(part))

        return args[0], _Tap.apply(args[1], tape.leaves[0], args[1], give, False)


class _Tape:
    """What one pass finds: parameter -> its shares, one per use.

    leaves: (P,), on which all that is tapped hangs, so that it has a gradient; then (P, *shape) zeros for each use of a layer
    after encoding, added to what leaves it: their gradient is that of each patient's own output, even where a layer's input
    was no patient's.
    """

    def __init__(self, patients: int, like: Tensor, shapes: list[torch.Size]) -> None:
        self.leaves = [like.new_zeros(patients, *shape, requires_grad=True) for shape in [torch.Size(), *shapes]]
        self.nudges: list[Tensor] = []  # the zeros under vmap
        self.shapes: list[torch.Size] = []  # of uses that no zeros were there for
        self.seen: list[tuple[str, nn.Module, set[str], Tensor]] = []
        self.owners: dict[str, Owners] | None = None
        self.whose: dict[str, Tensor] = {}
        self.shares: dict[str, list[Share]] = {}

    def add(self, name: str, share: Share) -> None:
        self.shares.setdefault(name, []).append(share)

    def give(self, name: str, layer: nn.Module, wanted: set[str], owners: Owners, x: Tensor, slope: Tensor) -> None:
        """A layer's parameters get what its rule says."""
        rule = rule_of(layer)
        assert rule is not None
        for parameter, share in rule(layer, x, slope, owners, wanted).items():
            self.add(f"{name}.{parameter}", share)


def _rows(layer: nn.Module, x: Tensor, slope: Tensor) -> tuple[Owners, Tensor, Tensor]:
    """What a layer saw under vmap, x (P, ...): the first axis is the patients', unless each has several rows of his own."""
    patients, whose, most = len(x), torch.arange(len(x)), 1
    if isinstance(layer, _TILED):
        most = x.shape[1]
        whose = whose.repeat_interleave(most)
        x, slope = x.flatten(0, 1), slope.flatten(0, 1)
    return Owners(whose, patients=patients, most=most), x, slope


class _Tap(torch.autograd.Function):
    """y as it is; its gradient is given to `tell` with x, the layer's input."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, leaf: Tensor, x: Tensor, tell: _Tell, same: bool) -> Tensor:
        ctx.x, ctx.version, ctx.tell = x, x._version, tell
        if not same:
            return y.view_as(y)
        ctx.mark_dirty(y)  # a network may go on to add to y in place, which a view of it would not allow
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.x._version != ctx.version:
            raise RuntimeError("a layer's input was changed in place after the layer had read it")
        with torch.no_grad():
            ctx.tell(ctx.x, slope)
        ctx.x = None
        return slope, None, None, None, None


class _Together(torch.autograd.Function):
    """Leaves vmap: what every patient would do alone, a function does for all of them at once."""

    @staticmethod
    def forward(volumes: Tensor, present: Tensor, together: Callable[[Tensor, Tensor], Embedded]) -> tuple[Tensor, ...]:
        raise RuntimeError("only under vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None: ...

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        volumes: Tensor,
        present: Tensor,
        together: Callable[[Tensor, Tensor], Embedded],
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        each = (_first(t, at, info.batch_size) for t, at in zip((volumes, present), in_dims[:2], strict=True))
        found = [t[:, None] for t in together(*(t.squeeze(1) for t in each)) if t is not None]
        return tuple(found), (0,) * len(found)


def _first(t: Tensor, at: int | None, patients: int) -> Tensor:
    """The axis of the patients in front; one where there is none."""
    return t.expand(patients, *t.shape) if at is None else t.movedim(at, 0)
