"""How fast and how steady the services are, next to others that do the same job.

The job: 64 float32 (an interest) and a path come in, the float32 parameters of all six
SASRec blocks (499,200 bytes) go out. `make bench`, `make soak`, `make overload`; what is
measured and how, in docs/benchmarks.md.
"""
