"""Late fusion: the cloud's query as a second opinion in the device's ranking.

The cloud retrieves candidates with a query q(h), a linear function of the interest h that is
trained to predict the next items by itself (`objectives.retrieval_loss`). The network reads T
items, h many more, and their errors differ: products of items with `vector + w q(h)` rank better
than those of either. q(h) is computed once for each network, so a ranking costs D additions more.

Network and query are trained with a loss each; h and the item embeddings, from which both are
made, learn from the two (unless `MethodConfig.retrieval_apart`). Trained by one loss on their sum
they lean on each other and rank no better than the network alone (experiments/LOG.md). w is the one
that ranks the validation split best, in each epoch anew.
"""

from __future__ import annotations

import torch

from forward_ofa.data.sequences import SequenceDataset
from forward_ofa.distributed import agreed
from forward_ofa.evaluation import ndcg, rank_of, user_batches
from forward_ofa.model import ForwardOFA

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


@torch.no_grad()
def choose_fusion(system: ForwardOFA, data: SequenceDataset) -> None:
    """Gives the system the weight with the best NDCG@10 on validation, the least of equal ones."""
    system.eval()
    items = system.items.weight
    ranks: list[list[torch.Tensor]] = [[] for _ in WEIGHTS]
    for whole in user_batches(
        data, "validation", system.extractor_history, system.backbone.config.history
    ):
        batch = whole.to(system.device)
        adaptation = system.adapt(batch)
        vectors = system.outputs(batch, adaptation)[:, 0]
        queries = system.query(adaptation.interest)
        for found, weight in zip(ranks, WEIGHTS, strict=True):
            scores = (vectors + weight * queries) @ items.T
            found.append(rank_of(scores, batch.targets[:, 0]).cpu())
    quality = [float(ndcg(torch.cat(found).numpy()).mean()) for found in ranks]
    chosen = agreed({"fusion": WEIGHTS[quality.index(max(quality))]})
    system.fusion.fill_(chosen["fusion"])
