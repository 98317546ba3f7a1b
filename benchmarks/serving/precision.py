"""What bfloat16 products cost in quality: NDCG@10 of a trained version, in both precisions.

    python -m benchmarks.serving.precision --registry runs/demo-ml-1m/registry --data ml-1m

The parts that run online: the SDK's extractor and engine in numpy, the mapper's products and
its float16 encoding. Full ranking of the items that the user has not seen, the last item of each
user as target, everything before it as history.
"""

from __future__ import annotations

import argparse
from typing import get_args

import numpy as np
import torch

from forward_ofa.data import SequenceDataset
from forward_ofa_cli.source import read_data
from forward_ofa_device.artefact import read_artefact, write_artefact
from forward_ofa_device.bundle import read_bundle
from forward_ofa_device.engine import NetworkEngine
from forward_ofa_device.extractor import InterestExtractor
from services.controller.served import ServedVersion
from services.mapper.domain import MappedVersion
from services.mapper.hypernetworks import Precision
from services.registry.contract import PublishedVersion
from services.registry.location import open_registry
