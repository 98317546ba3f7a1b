"""What a network costs: the paper's accounting to the digit, and the true one beside it.

FLOPs are multiply-accumulates. "paper" counts as `thop`, the tool behind the
paper's tables, counts: no attention products; LayerNorms and softmaxes of
skipped blocks too; generated parameters in Mbit of float32. "true" counts the
attention products as well, and only blocks that are there.

What the paper's tables say is reproduced by these recipes (T = 5, D = 64):

Table 1, 5   SASRec 6 blocks 0.6244 M FLOPs, 3.9936 Mbit; NextItNet 12 blocks
             1.5053 M, 9.5846 Mbit.
Table 5      Forward-device 0.2544 M / 0.0503 M parameters (SASRec), 0.2548 M /
             0.0507 M (NextItNet): two GRUs over T items and one linear layer. The
             paper cuts the first figure off; rounded it is 0.2545.
Table 5      Forward-cloud 8.1120 M and 19.2691 M parameters: L linear layers. Its
             FLOPs, 0.2621 and 0.7864 M, are those of generating one matrix; all
             blocks take 7.9872 M and 18.9727 M ("true").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forward_ofa_device.artefact import ENCODINGS, BlockLayout
from forward_ofa_device.backbones import build
from forward_ofa_device.backbones.contract import BackboneConfig, Flops

PAPER_BACKBONES = (BackboneConfig("sasrec", blocks=6), BackboneConfig("nextitnet", blocks=12))
FLOAT32_BITS = 32


@dataclass(frozen=True)
class NetworkCost:
    """One sub-model of k blocks on the device.

    flops: one forward pass over a window. parameter_mbit: the paper's "Param", float32,
    shared parameters that the paper counts included. true_mbit: all parameters that a device
    must hold to run it, item embeddings apart, float32. payload_bytes: the generated
    parameters on the wire, by encoding, without the artefact's header.
    """

    kept: int
    flops: Flops
    parameter_mbit: float
    true_mbit: float
    payload_bytes: dict[str, int]


@dataclass(frozen=True)
class ModuleCost:
    """Parameters and multiply-accumulates of the parts around the network."""

    parameters: int
    flops: Flops

    def __add__(self, other: ModuleCost) -> ModuleCost:
        return ModuleCost(self.parameters + other.parameters, self.flops + other.flops)


NO_MODULES = ModuleCost(0, Flops(0, 0))

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """What the networks of B devices cost; each array float64 [B].

    paper_flops, true_flops: multiply-accumulates of one inference.
    paper_bits: parameters as the paper's "Param" counts them, float32. true_bits: all that a
    device must hold to run the network, item embeddings apart: also what is shared and not in
    the paper's figure (SASRec: positions and last norm; NextItNet: the norms of all blocks, absent
    ones too), and what says where sparse values belong.
    payload_bytes: on the wire, by encoding; empty for networks that are not made of whole blocks.
    """

    paper_flops: FloatArray
    true_flops: FloatArray
    paper_bits: FloatArray
    true_bits: FloatArray
    payload_bytes: dict[str, FloatArray] = field(default_factory=dict)

    @classmethod
    def join(cls, parts: Sequence[Costs]) -> Costs:
        """The costs of all devices of several batches, in order."""

        def column(values: Callable[[Costs], FloatArray]) -> FloatArray:
            return np.concatenate([values(part) for part in parts])

        return cls(
            column(lambda part: part.paper_flops),
            column(lambda part: part.true_flops),
            column(lambda part: part.paper_bits),
            column(lambda part: part.true_bits),
            {
                e: np.concatenate([part.payload_bytes[e] for part in parts])
                for e in parts[0].payload_bytes
            },
        )

    def means(self) -> dict[str, Any]:
        """For a report: means over the devices, in millions."""
        found: dict[str, Any] = {
            "paper_mflops": float(self.paper_flops.mean()) / 1e6,
            "true_mflops": float(self.true_flops.mean()) / 1e6,
            "paper_mbit": float(self.paper_bits.mean()) / 1e6,
            "true_mbit": float(self.true_bits.mean()) / 1e6,
        }
        if self.payload_bytes:
            found["payload_bytes"] = {e: float(b.mean()) for e, b in self.payload_bytes.items()}
        return found


def block_costs(config: BackboneConfig, kept: NDArray[Any]) -> Costs:
    """Networks of `kept` [B] whole blocks each."""
    none, one = network_cost(config, 0), network_cost(config, 1)
    kept = kept.astype(np.float64)
    backbone = build(config)
    counted = backbone.fixed_parameters()
    shared = sum(spec.size for spec in backbone.shared_parameters())
    block = sum(spec.size for spec in backbone.block_parameters())

    def line(start: float, end: float) -> FloatArray:
        return start + kept * (end - start)

    return Costs(
        line(none.flops.paper, one.flops.paper),
        line(none.flops.true, one.flops.true),
        line(counted, counted + block) * FLOAT32_BITS,
        line(shared, shared + block) * FLOAT32_BITS,
        {e: line(0, one.payload_bytes[e]) for e in ENCODINGS},
    )


def network_cost(config: BackboneConfig, kept: int) -> NetworkCost:
    """A sub-model of `kept` blocks; which ones makes no difference.

    Raises ValueError unless 0 <= kept <= L.
    """
    if not 0 <= kept <= config.blocks:
        raise ValueError(f"kept is {kept}: a sub-model has 0 to {config.blocks} blocks")
    backbone = build(config)
    layout = BlockLayout.of(backbone.block_parameters())
    generated = kept * layout.size
    shared = sum(spec.size for spec in backbone.shared_parameters())
    return NetworkCost(
        kept,
        backbone.fixed_flops() + backbone.block_flops() * kept,
        (backbone.fixed_parameters() + generated) * FLOAT32_BITS / 1e6,
        (shared + generated) * FLOAT32_BITS / 1e6,
        {encoding: kept * layout.encoded_bytes(encoding) for encoding in ENCODINGS},
    )


def mean_network_cost(config: BackboneConfig, mean_kept: float) -> tuple[float, float, float]:
    """(paper MFLOPs, true MFLOPs, paper Mbit) at a mean number of kept blocks, as in Table 1."""
    none, one = network_cost(config, 0), network_cost(config, 1)
    return (
        (none.flops.paper + mean_kept * (one.flops.paper - none.flops.paper)) / 1e6,
        (none.flops.true + mean_kept * (one.flops.true - none.flops.true)) / 1e6,
        none.parameter_mbit + mean_kept * (one.parameter_mbit - none.parameter_mbit),
    )


def gru_flops(hidden: int, steps: int) -> int:
    """A GRU of equal input and hidden width over `steps` items, as `thop` counts it.

    Three gates of two matrices and the addition of their products, two biases each, and
    the four products and sums that make the new state.
    """
    gate = 2 * hidden * hidden + hidden + 2 * hidden
    return steps * (3 * gate + 4 * hidden)


def gru_parameters(hidden: int) -> int:
    return 6 * hidden * hidden + 6 * hidden


def extractor_cost(config: BackboneConfig, extractor_history: int) -> ModuleCost:
    """One GRU over a history: E or E'."""
    flops = gru_flops(config.hidden, extractor_history)
    return ModuleCost(gru_parameters(config.hidden), Flops(flops, flops))


def structure_controller_cost(config: BackboneConfig, extractor_history: int) -> ModuleCost:
    """E and H: a GRU and one linear layer."""
    head = config.hidden * config.blocks
    linear = ModuleCost(head + config.blocks, Flops(head, head))
    return extractor_cost(config, extractor_history) + linear


def device_modules_cost(config: BackboneConfig, extractor_history: int) -> ModuleCost:
    """E, H and E' (Table 5, "Forward-device"): run at each refresh, not at each ranking."""
    controller = structure_controller_cost(config, extractor_history)
    return controller + extractor_cost(config, extractor_history)


def query_cost(config: BackboneConfig) -> ModuleCost:
    """The cloud's query from h, where devices add it to their network's output; at each refresh."""
    products = config.hidden**2
    return ModuleCost(products + config.hidden, Flops(products, products))


def cloud_modules_cost(config: BackboneConfig, bases: int = 0) -> ModuleCost:
    """The L block hypernetworks (Table 5, "Forward-cloud").

    flops.paper: one matrix of one block, which is what the table's figure is. bases: of the
    factored form as it is trained (`MethodConfig.bases`); a published version holds the factors
    multiplied out, and costs what bases = 0 does.
    """
    backbone = build(config)
    specs = backbone.block_parameters()
    size = sum(spec.size for spec in specs)
    matrix = next(spec.size for spec in specs if spec.kind == "matrix")
    mixing = bases * config.hidden
    return ModuleCost(
        config.blocks * (((bases or config.hidden) + 1) * size + mixing),
        Flops(
            (bases or config.hidden) * matrix + mixing,
            generation_flops(config, config.blocks, bases),
        ),
    )


def generation_flops(config: BackboneConfig, kept: int, bases: int = 0) -> int:
    """Generating `kept` blocks on the cloud: D multiply-accumulates a value; factored, one a base
    and value, and D a base for the mixing."""
    size = sum(spec.size for spec in build(config).block_parameters())
    return kept * ((bases or config.hidden) * size + bases * config.hidden)


def cost_table(config: BackboneConfig, extractor_history: int) -> dict[str, Any]:
    """Everything about one backbone under stable keys, for `forward-ofa cost --json`."""
    device, cloud = (
        device_modules_cost(config, extractor_history),
        cloud_modules_cost(config),
    )
    return {
        "backbone": config.name,
        "blocks": config.blocks,
        "hidden": config.hidden,
        "history": config.history,
        "extractor_history": extractor_history,
        "network_by_kept_blocks": [
            _network_json(network_cost(config, kept)) for kept in range(config.blocks + 1)
        ],
        "full_network": _network_json(network_cost(config, config.blocks)),
        "forward_device": module_json(device),
        "forward_cloud": module_json(cloud),
    }


def _network_json(cost: NetworkCost) -> dict[str, Any]:
    return {
        "kept_blocks": cost.kept,
        "paper_flops": cost.flops.paper,
        "paper_mflops": round(cost.flops.paper / 1e6, 4),
        "true_flops": cost.flops.true,
        "true_mflops": round(cost.flops.true / 1e6, 4),
        "paper_mbit": round(cost.parameter_mbit, 4),
        "true_mbit": round(cost.true_mbit, 4),
        "payload_bytes": cost.payload_bytes,
    }


def module_json(cost: ModuleCost) -> dict[str, Any]:
    """A module's cost under stable keys."""
    return {
        "parameters": cost.parameters,
        "mparameters": round(cost.parameters / 1e6, 4),
        "paper_flops": cost.flops.paper,
        "paper_mflops": round(cost.flops.paper / 1e6, 4),
        "paper_mflops_cut_off": cost.flops.paper // 100 / 1e4,
        "true_flops": cost.flops.true,
        "true_mflops": round(cost.flops.true / 1e6, 4),
    }
