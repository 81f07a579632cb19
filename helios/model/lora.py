"""Low-rank adapters: attach, train, switch, stack, merge.

Beside a weight ``W`` an adapter holds ``A`` and ``B`` of low rank ``r``, and the layer computes

    W x  +  scale * (alpha / r) * B (A x).

The base weights are never written to (but by ``Adapters.merge``), so taking an adapter away leaves
exactly what was there. An adapter can also carry whole tensors, learnt in full: the memory patches
of Helios and its norms. Source: "training", sections 0.3, 1 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios.model.patch import Patch
from helios.model.transformer import HeliosTransformer

__all__ = [
    "Adapter",
    "Adapters",
    "Factors",
    "LoraConfig",
    "adapters_of",
    "fits",
    "layers_of",
    "new_adapter",
]

Learning = Literal["frozen", "low_rank", "full"]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What an adapter learns; every linear layer always.

    Attributes:
        rank: of every pair of factors.
        alpha: the difference is multiplied by ``alpha / rank``; none: by 1.
        patch_embedding: how the patches of the noisy chunk learn.
        memory_patches: how the three patches of history learn.
        norms: learn the gains of the query and key norms in full.
    """

    rank: int = 128
    alpha: float | None = None
    patch_embedding: Learning = "frozen"
    memory_patches: Learning = "low_rank"
    norms: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be learnt."""
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"alpha must be positive, got {self.alpha}")
        for name in ("patch_embedding", "memory_patches"):
            if getattr(self, name) not in ("frozen", "low_rank", "full"):
                raise ValueError(
                    f"{name} must be frozen, low_rank or full, got {getattr(self, name)!r}"
                )


class Factors(nn.Module):
    """One low-rank difference of a weight ``[out, in, ...]``.

    Args:
        down: ``[r, in, ...]``, the rest as in the weight.
        up: ``[out, r, 1...]``.
        gain: what the product is multiplied by, ``alpha / r``.
    """

    def __init__(self, down: Tensor, up: Tensor, gain: float = 1.0) -> None:
        super().__init__()
        self.down = nn.Parameter(down, requires_grad=down.requires_grad)
        self.up = nn.Parameter(up, requires_grad=up.requires_grad)
        self.gain = gain

    @property
    def rank(self) -> int:
        """Rank of the difference, at most."""
        return self.down.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``, without the gain, in the dtype of the factors."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.down.dtype)
        return F.linear(F.linear(x, self.down.flatten(1)), self.up.flatten(1))

    def difference(self) -> Tensor:
        """What the pair adds to its weight, float32 ``[out, in * ...]``."""
        return self.gain * (self.up.float().flatten(1) @ self.down.float().flatten(1))


class Adapter(nn.Module):
    """What was learnt beside a transformer; its parameters are no part of that transformer's.

    Args:
        factors: by the name of the layer they belong to, such as ``head.project``.
        tensors: whole tensors by the name of the parameter they take the place of.
    """

    def __init__(self, factors: Mapping[str, Factors], tensors: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        # PyTorch allows no dots in the names of children.
        self._factors = nn.ModuleDict({n.replace(".", "/"): f for n, f in factors.items()})
        self._tensors = nn.ParameterDict({n.replace(".", "/"): t for n, t in tensors.items()})

    @property
    def factors(self) -> dict[str, Factors]:
        """Low-rank differences by layer."""
        held = {n.replace("/", "."): f for n, f in self._factors.items()}
        return {name: f for name, f in held.items() if isinstance(f, Factors)}

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """Whole tensors by parameter."""
        return {n.replace("/", "."): t for n, t in self._tensors.items()}


def new_adapter(
    model: HeliosTransformer, config: LoraConfig, generator: torch.Generator | None = None
) -> Adapter:
    """A fresh adapter to train: it changes nothing yet.

    ``A`` is normal with deviation ``1 / rank`` and ``B`` zero; whole tensors start as copies. All
    are float32, whatever the model is. Attach it with ``adapters_of(model).add`` and freeze the
    model with ``model.requires_grad_(False)``.

    Args:
        model: the network it is for, with no other adapter acting on it.
        config: what learns.
        generator: on the model's device.
    """
    gain = 1.0 if config.alpha is None else config.alpha / config.rank
    factors: dict[str, Factors] = {}
    tensors: dict[str, nn.Parameter] = {}
    for name, layer in layers_of(model).items():
        learning: Learning = "low_rank"
        if isinstance(layer, Patch):
            noisy = name == "patches.noisy"
            learning = config.patch_embedding if noisy else config.memory_patches
        if learning == "low_rank":
            factors[name] = _fresh(layer.weight, config.rank, gain, generator)
        elif learning == "full":
            tensors |= {f"{name}.{leaf}": _copy(p) for leaf, p in layer.named_parameters()}
    if config.norms:
        named = model.named_parameters()
        tensors |= {
            n: _copy(p) for n, p in named if n.endswith(("query_norm.weight", "key_norm.weight"))
        }
    return Adapter(factors, tensors)


def _fresh(weight: Tensor, rank: int, gain: float, generator: torch.Generator | None) -> Factors:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device=weight.device, dtype=torch.float32)

    down = empty(rank, *weight.shape[1:]).normal_(0, 1 / rank, generator=generator)
    up = empty(weight.shape[0], rank, *(1,) * (weight.dim() - 2)).zero_()
    return Factors(down.requires_grad_(), up.requires_grad_(), gain)


def _copy(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to(torch.float32, copy=True))


class _Adapted:
    """What layers gain while an adapter acts on them."""

    terms: tuple[tuple[Factors, float], ...]

    def add_terms(self, out: Tensor, x: Tensor) -> Tensor:
        """``out`` plus the difference that each adapter makes at input ``x``."""
        for factors, scale in self.terms:
            out = out + (scale * factors.gain * factors(x)).to(out.dtype)
        return out


class _AdaptedLinear(_Adapted, nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.add_terms(super().forward(x), x)


class _AdaptedPatch(_Adapted, Patch):
    def embed(self, cells: Tensor) -> Tensor:
        return self.add_terms(super().embed(cells), cells)


_ADAPTED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _AdaptedLinear,
    Patch: _AdaptedPatch,
}
_PLAIN = {adapted: plain for plain, adapted in _ADAPTED.items()}
Layer = nn.Linear | Patch


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """The layers that can have factors, by name; a class that only derives from these cannot."""
    known = _ADAPTED.keys() | _PLAIN.keys()
    named = model.named_modules()
    return {n: m for n, m in named if type(m) in known and isinstance(m, Layer)}


def _set_terms(layer: nn.Module, terms: tuple[tuple[Factors, float], ...]) -> None:
    """Make exactly ``terms`` act on ``layer``.

    The layer changes its class, as PyTorch's own parametrisations do: its name, its parameters and
    its hooks stay what they are, a compiled graph notices, and without terms it is as it was.
    """
    kind = type(layer)
    if terms:
        layer.__class__ = _ADAPTED.get(kind, kind)
        vars(layer)["terms"] = terms
    elif kind in _PLAIN:
        layer.__class__ = _PLAIN[kind]
        del vars(layer)["terms"]


@dataclass(frozen=True, kw_only=True)
class _Effect:
    """What the acting adapters come to, worked out before anything is changed."""

    terms: Mapping[str, tuple[tuple[Factors, float], ...]]
    tensors: Mapping[str, nn.Parameter]


class Adapters:
    """The adapters on one transformer, by name; made by :func:`adapters_of`.

    What several adapters change adds up, each difference times its scale; a whole tensor counts as
    its difference from the base, so with scale 1 and alone it is exactly itself.

    Not for use while the transformer runs in another thread. Give the model its dtype and device
    before the first adapter.
    """

    def __init__(self, model: HeliosTransformer) -> None:
        self._model = model
        self._held: dict[str, tuple[Adapter, float]] = {}
        self._chosen: frozenset[str] | None = None
        self._base: dict[str, nn.Parameter] = {}
        self._originals: dict[str, Tensor] | None = None

    @property
    def scales(self) -> dict[str, float]:
        """Scale by name, in the order they were added."""
        return {name: scale for name, (_, scale) in self._held.items()}

    @property
    def acting(self) -> list[tuple[Adapter, float]]:
        """The adapters that change something now, with their scales."""
        return self._acting_of(self._held)

    @property
    def merged(self) -> bool:
        """Whether the base weights now hold what the adapters add."""
        return self._originals is not None

    def base_parameters(self) -> dict[str, nn.Parameter]:
        """The model's own parameters by name, whatever adapters act on it."""
        return {n: self._base.get(n, p) for n, p in self._model.named_parameters()}

    def add(self, name: str, adapter: Adapter, scale: float = 1.0) -> None:
        """Let ``adapter`` act from now on.

        Raises:
            ValueError: if the name is taken, or the adapter does not fit; nothing is changed.
        """
        self.check_new(name, scale)
        self._check_fit(adapter)
        self._change({**self._held, name: (adapter, _checked(scale))})

    def check_new(self, name: str, scale: float = 1.0) -> None:
        """Refuse what :meth:`add` would refuse whatever the adapter."""
        if name in self._held:
            raise ValueError(f"an adapter named {name!r} is there already; take another name")
        _checked(scale)
        self._refuse_merged()

    def remove(self, name: str) -> Adapter:
        """Take an adapter away; what is left is as if it had never been there."""
        adapter, _ = self._get(name)
        self._change({n: held for n, held in self._held.items() if n != name})
        return adapter

    def set_scale(self, name: str, scale: float) -> None:
        """How much an adapter counts: 0 is not at all."""
        adapter, _ = self._get(name)
        self._change({**self._held, name: (adapter, _checked(scale))})

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """Inside, only the adapters named act; ``using()`` is the bare model, bit for bit."""
        self._refuse_merged()
        for name in names:
            self._get(name)
        before = self._chosen
        self._chosen = frozenset(names)
        try:
            self._apply(self._effect(self._held))
            yield
        finally:
            self._chosen = before
            self._apply(self._effect(self._held))

    @torch.no_grad()
    def merge(self, *, keep: bool = True) -> None:
        """Fold what the adapters add into the base weights: the same video at no extra cost.

        Args:
            keep: hold the originals in host memory, which :meth:`unmerge` gives back exactly;
                if false, the adapters are gone and the model is a plain one.
        """
        self._refuse_merged()
        effect = self._effect(self._held)
        own = self.base_parameters()
        changed = [f"{name}.weight" for name in effect.terms] + list(effect.tensors)
        originals = {n: own[n].detach().to("cpu", copy=True) for n in changed} if keep else {}
        try:
            self._fold(effect, own)
        except BaseException:
            for name, value in originals.items():
                own[name].copy_(value)
            raise
        self._apply(_Effect(terms={}, tensors={}))
        if keep:
            self._originals = originals
        else:
            self._held = {}

    def _fold(self, effect: _Effect, own: Mapping[str, nn.Parameter]) -> None:
        # Factors come on top of a whole tensor of the same layer, as they do when both act.
        for name, tensor in effect.tensors.items():
            own[name].copy_(tensor)
        for name, terms in effect.terms.items():
            weight = own[f"{name}.weight"]
            source = effect.tensors.get(f"{name}.weight", weight)
            total = source.float() + sum(
                scale * factors.difference().view_as(weight) for factors, scale in terms
            )
            weight.copy_(total)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the base weights back as they were before :meth:`merge`; the adapters act beside."""
        if self._originals is None:
            raise ValueError("the adapters are not merged")
        own = dict(self._model.named_parameters())
        for name, value in self._originals.items():
            own[name].copy_(value)
        self._originals = None
        self._apply(self._effect(self._held))

    def _get(self, name: str) -> tuple[Adapter, float]:
        if name not in self._held:
            there = ", ".join(map(repr, self._held)) or "none"
            raise ValueError(f"no adapter is named {name!r}; there are: {there}")
        return self._held[name]

    def _check_fit(self, adapter: Adapter) -> None:
        layers, own = layers_of(self._model), self.base_parameters()
        wrong = [
            name
            for name, factors in adapter.factors.items()
            if name not in layers or not fits(factors.down, factors.up, layers[name].weight)
        ]
        wrong += [
            name
            for name, tensor in adapter.tensors.items()
            if name not in own or own[name].shape != tensor.shape
        ]
        if wrong:
            raise ValueError(f"the adapter does not fit this model: {', '.join(wrong[:20])}")

    def _refuse_merged(self) -> None:
        if self._originals is not None:
            raise ValueError("the adapters are merged; unmerge them first")

    def _change(self, held: dict[str, tuple[Adapter, float]]) -> None:
        self._refuse_merged()
        effect = self._effect(held)
        self._held = held
        self._apply(effect)

    def _effect(self, held: Mapping[str, tuple[Adapter, float]]) -> _Effect:
        terms: dict[str, tuple[tuple[Factors, float], ...]] = {}
        whole: dict[str, list[tuple[nn.Parameter, float]]] = {}
        for adapter, scale in self._acting_of(held):
            for name, factors in adapter.factors.items():
                terms[name] = (*terms.get(name, ()), (factors, scale))
            for name, tensor in adapter.tensors.items():
                whole.setdefault(name, []).append((tensor, scale))
        own = self.base_parameters()
        tensors = {name: _combined(name, own[name], parts) for name, parts in whole.items()}
        return _Effect(terms=terms, tensors=tensors)

    def _acting_of(self, held: Mapping[str, tuple[Adapter, float]]) -> list[tuple[Adapter, float]]:
        chosen = held.keys() if self._chosen is None else self._chosen
        return [pair for name, pair in held.items() if pair[1] and name in chosen]

    def _apply(self, effect: _Effect) -> None:
        for name, layer in layers_of(self._model).items():
            _set_terms(layer, effect.terms.get(name, ()))
        for name in [*self._base.keys() - effect.tensors.keys(), *effect.tensors]:
            module, _, leaf = name.rpartition(".")
            owner = self._model.get_submodule(module)
            if name in effect.tensors:
                self._base.setdefault(name, owner.get_parameter(leaf))
                setattr(owner, leaf, effect.tensors[name])
            else:
                setattr(owner, leaf, self._base.pop(name))


def adapters_of(model: HeliosTransformer) -> Adapters:
    """The adapters on ``model``: one collection for each model, empty at first."""
    held = vars(model).get("_adapters")
    if not isinstance(held, Adapters):
        # Beside the model's parameters and modules, not among them: a saved model is the model.
        held = vars(model)["_adapters"] = Adapters(model)
    return held


def fits(down: Tensor, up: Tensor, weight: Tensor) -> bool:
    """Whether two factors have the shapes for ``weight``, with one rank of at least 1."""
    ones = (1,) * (weight.dim() - 2)
    rank = down.shape[0] if down.dim() else 0
    shapes = (rank, *weight.shape[1:]), (weight.shape[0], rank, *ones)
    return rank > 0 and (tuple(down.shape), tuple(up.shape)) == shapes


def _checked(scale: float) -> float:
    if not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale}")
    return float(scale)


def _combined(
    name: str, base: nn.Parameter, parts: list[tuple[nn.Parameter, float]]
) -> nn.Parameter:
    """One tensor for a parameter that adapters bring whole: the base and their differences."""
    if len(parts) == 1 and parts[0][1] == 1.0:
        return parts[0][0]
    if any(tensor.requires_grad for tensor, _ in parts):
        raise ValueError(f"{name} is learnt in full: train it alone and with scale 1")
    total = base.detach().float()
    for tensor, scale in parts:
        total = total + scale * (tensor.float() - base.detach().float())
    return nn.Parameter(total.to(base.dtype), requires_grad=False)
