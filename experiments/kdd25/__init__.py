"""The tables and figures of "Forward Once for All" (KDD 2025), ours beside the paper's.

make paper ARGS="--help"; how it works: docs/paper.md
"""
