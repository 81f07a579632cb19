"""Floors and gaps against closed forms; the library calls are those of the network."""

from __future__ import annotations

import pytest
import torch

from helios.evaluation.throughput.clock import per_second
from helios.evaluation.throughput.subject import Lengths
from helios.evaluation.throughput.timeline import (
    Library,
    measure_ceiling,
    measure_library,
    timeline,
)
from helios.geometry import token_count
from helios.model import Fp8Config, quantised


def test_operations_are_counted_block_by_block(subject) -> None:
    made = subject()
    config = made.transformer.config
    lengths = made.lengths(made.noisy(1))
    assert lengths.noisy == token_count(9, 4, 4)
    assert lengths.text == made.text.shape[1]
    library = measure_library(made.transformer, lengths)
    everyone, width = lengths.noisy + lengths.history, config.width
    products = (8 * width**2 + 4 * width * config.ffn_dim) * everyone
    products += 4 * width**2 * lengths.noisy
    looked = 4 * width * (everyone**2 + lengths.noisy * lengths.text)
    assert library.product_flops == config.num_layers * products
    assert library.attention_flops == config.num_layers * looked
    assert library.product_e4m3_flops == library.attention_e4m3_flops == 0
    assert min(library.products, library.attention) > 0
    # Thirteen passes over all tokens, seven over those that read, two over the hidden layer.
    size = made.transformer.dtype.itemsize
    moved = (13 * everyone + 7 * lengths.noisy) * width + 2 * everyone * config.ffn_dim
    assert library.moved == config.num_layers * moved * size


def test_what_is_quantised_counts_as_such(subject) -> None:
    made = subject(torch.bfloat16, torch.float32)
    lengths = Lengths(12, 8, 4)
    for config, share in (
        (Fp8Config(attention_from=None), "products"),
        (Fp8Config(attention_from=20), "both"),
        (Fp8Config(attention_from=21), "products"),
    ):
        with torch.no_grad(), quantised(made.transformer, config) as narrow:
            found = measure_library(narrow, lengths)
        blocks, width = narrow.config.num_layers, narrow.config.width
        # What text attention writes stays as it is.
        expected = found.product_flops - blocks * 2 * width**2 * 12
        assert found.product_e4m3_flops == expected
        text = 4 * width * 12 * 4 * blocks
        looked = found.attention_flops - text if share == "both" else 0
        assert found.attention_e4m3_flops == looked


def test_ceiling_is_a_rate() -> None:
    ceiling = measure_ceiling(torch.device("cpu"), torch.float32, 1)
    assert ceiling.product > 1e8
    assert ceiling.e4m3 is None
    assert ceiling.copy > 1e8


def test_rates_have_the_prefix_of_the_largest() -> None:
    assert per_second("FLOP", 756.3e12, 7.4e12) == "756, 7.4 TFLOP/s"
    assert per_second("B", 41.2e9, 9.4e8) == "41.2, 0.94 GB/s"
    assert per_second("FLOP", 1.31e15, 0.98e15) == "1.31, 0.98 PFLOP/s"
    assert per_second("FLOP", 999.9e12) == "1 PFLOP/s"
    assert per_second("B", 2e9, float("inf")) == "2, inf GB/s"
    assert per_second("B", float("inf")) == "inf B/s"
    assert per_second("frame", 24.0) == "24 frame/s"


CEILING = {"product": 500e12, "e4m3": 1000e12, "copy": 4e12}


def test_gaps_add_up() -> None:
    # 1 TFLOP of products in 4 ms, 0.5 of attention in 2 ms, 4 GB between; 8 ms together.
    library = Library(4e-3, 2e-3, 1e12, 0.5e12, 0.0, 0.0, 4e9)
    arm = {
        "plans": {"1,1,2": {"median_ms": 50.0}},
        "forward": [{"median_ms": 8.0}] * 3,
        "library": [library.to_json()] * 3,
        "decode": {"median_ms": 15.0},
    }
    floor = {"flops": [0, 0, 0, 5e12], "ceiling": CEILING}
    lines = list(timeline(arm, (1, 1, 2), floor))[2:]
    assert lines[0].startswith("| products | 8.0 | 16.0 | +8.0 | 250, 250, 250 TFLOP/s")
    assert lines[1].startswith("| attention | 4.0 | 8.0 | +4.0 | 250, 250, 250 TFLOP/s")
    assert lines[2].startswith("| between | 4.0 | 8.0 | +4.0 | 2, 2, 2 TB/s")
    assert lines[3].startswith("| of these: forward 1/4 | 4.0 | 8.0 | +4.0 | 50% ")
    assert lines[5].startswith("| of these: forward full, 2 times | 8.0 | 16.0 | +8.0 |")
    assert lines[6].startswith("| decode | 10.0 | 15.0 | +5.0 | 333 TFLOP/s")
    assert lines[7].startswith("| all else | 0.0 | 3.0 | +3.0 |")
    assert lines[8] == "| chunk | 26.0 | 50.0 | +24.0 | 52% of the time is the floor |"


@pytest.mark.parametrize(
    ("narrow", "products", "attention"),
    [((0.0, 0.0), 6.0, 3.0), ((1e12, 0.0), 3.0, 3.0), ((1e12, 0.5e12), 3.0, 1.5)],
)
def test_e4m3_lowers_the_floor(
    narrow: tuple[float, float], products: float, attention: float
) -> None:
    library = Library(4e-3, 2e-3, 1e12, 0.5e12, *narrow, 0.0)
    arm = {
        "plans": {"1,1,1": {"median_ms": 10.0}},
        "forward": [{"median_ms": 8.0}] * 3,
        "library": [library.to_json()] * 3,
        "decode": {"median_ms": 1.0},
    }
    floor = {"flops": [1e12], "ceiling": CEILING}
    lines = list(timeline(arm, (1, 1, 1), floor))
    assert lines[2].startswith(f"| products | {products:.1f} |")
    assert lines[3].startswith(f"| attention | {attention:.1f} |")
    assert "hides as much" in lines[9]
