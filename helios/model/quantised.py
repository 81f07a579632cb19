"""A transformer with matrix products in e4m3: which ones, made from a loaded one, and how far off.

Weights are quantised once, one scale per output channel; activations as they are made, one scale
per token, inside the kernels that make them (specification "performance", section 3b, 15 and 16).
Everything outside the blocks, the keys and values of the text (read once per prompt) and all norms
stay as they are. A quantised transformer is for inference, and adapters cannot be added to it:
merge them first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from helios.kernels import E4M3, Scaled
from helios.model.attention import lay_side_by_side
from helios.model.block import Block
from helios.model.fp8 import Fp8Linear
from helios.model.lora import adapters_of
from helios.model.transformer import HeliosTransformer

__all__ = [
    "MATRICES",
    "Difference",
    "Family",
    "Fp8Config",
    "fp8_errors",
    "is_quantised",
    "lay_out",
    "make_room",
    "quantise",
    "quantised",
    "target_names",
    "tokens_in_e4m3",
]

Family = Literal["self_attention", "cross_attention", "feed_forward"]
FAMILIES: tuple[Family, ...] = get_args(Family)
_LAYERS: Mapping[Family, tuple[str, ...]] = {
    "self_attention": ("query", "key", "value", "out"),
    "cross_attention": ("query", "out"),
    "feed_forward": ("expand", "contract"),
}


MATRICES = tuple(f"{family}.{layer}" for family in FAMILIES for layer in _LAYERS[family])
"""Linear layers of a block that run in every pass: all but keys and values of the text."""
_SELF_INPUTS = tuple(f"self_attention.{name}" for name in ("query", "key", "value"))


@dataclass(frozen=True, kw_only=True)
class Fp8Config:
    """What is multiplied in e4m3.

    Attributes:
        families: of the linear layers of a block.
        kept_blocks: numbers of blocks that stay as they are.
        kept_layers: layers that stay so in every block, as ``"family.layer"``. By default what text
            attention writes: it enters the sum without a gate, and in a random network its rounding
            alone is two fifths of the whole error (decision record 7).
        attention_from: tokens from which queries, keys and values are e4m3 as well; none: never.
            At 384x640 that pays at the full-resolution scale only.
    """

    families: tuple[Family, ...] = FAMILIES
    kept_blocks: tuple[int, ...] = ()
    kept_layers: tuple[str, ...] = ("cross_attention.out",)
    attention_from: int | None = 8192

    def __post_init__(self) -> None:
        """Refuse what does not exist."""
        wrong = [family for family in self.families if family not in FAMILIES]
        if wrong:
            raise ValueError(f"families must be of {', '.join(FAMILIES)}, got {', '.join(wrong)}")
        strange = [layer for layer in self.kept_layers if layer not in MATRICES]
        if strange:
            raise ValueError(
                f"kept_layers must be of {', '.join(MATRICES)}, got {', '.join(strange)}"
            )
        inputs = set(_SELF_INPUTS) & set(self.kept_layers)
        if "self_attention" in self.families and 0 < len(inputs) < len(_SELF_INPUTS):
            raise ValueError(
                f"kept_layers: {', '.join(_SELF_INPUTS)} read one input, so keep all or none"
            )
        if any(number < 0 for number in self.kept_blocks):
            raise ValueError(f"kept_blocks must be numbers of blocks, got {self.kept_blocks}")
        if self.attention_from is not None and self.attention_from < 1:
            raise ValueError(f"attention_from must be positive, got {self.attention_from}")


def is_quantised(model: HeliosTransformer) -> bool:
    """Whether some product of ``model`` is one of e4m3 numbers."""
    return any(isinstance(module, Fp8Linear) for module in model.modules())


def target_names(model: HeliosTransformer, config: Fp8Config) -> Iterator[str]:
    """The layers that ``config`` names, such as ``"blocks.0.feed_forward.expand"``.

    Raises:
        ValueError: if a block is named that the model does not have.
    """
    if any(number >= len(model.blocks) for number in config.kept_blocks):
        raise ValueError(f"kept_blocks {config.kept_blocks}: there are {len(model.blocks)} blocks")
    for number in range(len(model.blocks)):
        if number not in config.kept_blocks:
            for family in config.families:
                for name in _LAYERS[family]:
                    if f"{family}.{name}" not in config.kept_layers:
                        yield f"blocks.{number}.{family}.{name}"


def targets(model: HeliosTransformer, config: Fp8Config) -> Iterator[tuple[nn.Module, str]]:
    """The same layers: what holds each, and what it is called there."""
    for path in target_names(model, config):
        owner, _, name = path.rpartition(".")
        yield model.get_submodule(owner), name


@torch.no_grad()
def quantise(model: HeliosTransformer, config: Fp8Config | None = None) -> HeliosTransformer:
    """Put e4m3 in the place of the weights that ``config`` names, layer by layer, and return it.

    Args:
        model: changed in place; the weights replaced are let go.
        config: what is quantised; by default nearly all linear layers of all blocks.

    Raises:
        ValueError: if adapters act on it, or it is quantised already.
    """
    if adapters_of(model).scales or adapters_of(model).merged:
        raise ValueError("adapters are on this transformer: merge them for good, or unload them")
    if is_quantised(model):
        raise ValueError("this transformer is quantised already")
    config = config or Fp8Config()
    for owner, name in targets(model, config):
        layer = cast(nn.Linear, owner.get_submodule(name))
        setattr(owner, name, Fp8Linear(layer.weight, layer.bias))
    _set_attention(model, config.attention_from)
    lay_out(model)
    return model


def _set_attention(model: HeliosTransformer, tokens: int | None) -> None:
    for block in model.blocks:
        cast(Block, block).self_attention.e4m3_from = tokens


def tokens_in_e4m3(model: HeliosTransformer) -> int | None:
    """From how many tokens attention is in e4m3; none: never."""
    return cast(Block, model.blocks[0]).self_attention.e4m3_from


def make_room(model: HeliosTransformer, attention_from: int | None, names: Collection[str]) -> None:
    """Make the layers ``names`` of a model on the meta device ready for stored e4m3 weights."""
    for name in names:
        place, _, rest = name.removeprefix("blocks.").partition(".")
        if not name.startswith("blocks.") or rest not in MATRICES:
            continue
        owner = model.get_submodule(f"blocks.{place}.{rest.partition('.')[0]}")
        layer = cast(nn.Linear, owner.get_submodule(name.rpartition(".")[2]))
        values = torch.empty(layer.weight.shape, dtype=E4M3, device="meta")
        scale = torch.empty((len(values), 1), dtype=torch.float32, device="meta")
        setattr(owner, name.rpartition(".")[2], Fp8Linear(Scaled(values, scale), layer.bias))
    _set_attention(model, attention_from)


def lay_out(model: HeliosTransformer, apart: Collection[int] = ()) -> None:
    """Let projections of one input lie side by side, so that one product serves them.

    In the blocks ``apart`` only those of the text, which stay where they are.
    """
    for number, block in enumerate(model.blocks):
        own = cast(Block, block)
        if number not in apart:
            lay_side_by_side(own.self_attention, ("query", "key", "value"))
        lay_side_by_side(own.cross_attention, ("key", "value"))


@contextmanager
def quantised(model: HeliosTransformer, config: Fp8Config) -> Iterator[HeliosTransformer]:
    """Inside, ``model`` is what `quantise` makes of it; afterwards what it was. Needs both at once.

    Raises:
        ValueError: as `quantise`.
    """
    kept = [(owner, name, owner.get_submodule(name)) for owner, name in targets(model, config)]
    before = [cast(Block, block).self_attention.e4m3_from for block in model.blocks]
    try:
        yield quantise(model, config)
    finally:
        for owner, name, layer in kept:
            setattr(owner, name, layer)
        for block, tokens in zip(model.blocks, before):
            cast(Block, block).self_attention.e4m3_from = tokens


@dataclass(frozen=True)
class Difference:
    """How far one tensor is from another.

    Attributes:
        relative: ``|a - b| / |b|``.
        cosine: of the angle between them.
    """

    relative: float
    cosine: float

    @classmethod
    def between(cls, found: Tensor, exact: Tensor) -> Difference:
        """Of ``found`` from ``exact``, in float64."""
        a, b = found.double().flatten(), exact.double().flatten()
        relative = (a - b).norm() / b.norm()
        return cls(float(relative), float(torch.dot(a, b) / (a.norm() * b.norm())))


@torch.no_grad()
def fp8_errors(
    model: HeliosTransformer,
    velocity: Callable[[HeliosTransformer], Tensor],
    config: Fp8Config | None = None,
    exact: Tensor | None = None,
) -> dict[str, Difference]:
    """What each family costs alone, attention alone, and all that ``config`` names together.

    Args:
        model: not quantised; unchanged afterwards.
        velocity: asks a transformer, always the same question.
        config: what is asked about.
        exact: the answer to compare with; by default that of ``model`` itself.
    """
    config = config or Fp8Config()
    exact = velocity(model) if exact is None else exact
    trials: dict[str, Fp8Config] = {
        name: replace(config, families=(name,), attention_from=None) for name in config.families
    }
    if config.attention_from is not None:
        trials["attention"] = replace(config, families=())
    found = {}
    for name, trial in {**trials, "all": config}.items():
        with quantised(model, trial) as changed:
            found[name] = Difference.between(velocity(changed), exact)
    return found
