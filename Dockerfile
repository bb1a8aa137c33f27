# Reef's image. It builds with BuildKit and with Docker's classic builder, on amd64 and arm64:
#
#   docker build --tag reef:local .
#
# BASE and BUILD_BASE name other bases: debian:trixie-slim@sha256:… holds one to its digest, as
# releases do, and scripts/base-image.sh makes them where no registry answers.
ARG BASE=debian:trixie-slim
ARG BUILD_BASE=${BASE}

# ---------------------------------------------------------------------------- the wheels
FROM ${BUILD_BASE} AS wheels

RUN set -eux; \
    apt-get update; \
    apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv; \
    rm -rf /var/lib/apt/lists/*

# For sites whose packages come from an index of their own; pip reads it.
ARG PIP_INDEX_URL

# pip stays outside of what is copied on. Every file that it takes has its hash in run.txt.
COPY requirements/run.txt /build/run.txt
RUN set -eux; \
    python3 -m venv /build/pip; \
    python3 -m venv --without-pip /opt/reef/venv; \
    /build/pip/bin/python -m pip --python /opt/reef/venv/bin/python install --quiet \
      --disable-pip-version-check --no-cache-dir --no-compile --only-binary :all: \
      --require-hashes --requirement /build/run.txt; \
    rm -rf /build/pip; \
    packages=$(echo /opt/reef/venv/lib/python3*/site-packages); \
    # LiteRT's WebGPU accelerator, a third of it; Reef runs on the CPU and the Edge TPU.
    rm "$packages/ai_edge_litert/libLiteRtWebGpuAccelerator.so"; \
    # Compiling Fortran, and the tests of what was tested before it was published.
    rm -r "$packages/numpy/f2py"; \
    find "$packages" -type d -name tests -prune -exec rm -r {} +; \
    # The image has no place to keep what Python compiles later, so it is compiled now.
    /opt/reef/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash "$packages"

# ---------------------------------------------------------------------------- for the Edge TPU
FROM wheels AS edgetpu

# auto: go on without these files when their site can't be reached, and say so in /ready;
# required: stop then; none: don't ask. A wrong checksum stops the build whatever this says.
ARG EDGETPU=auto
# A site that has the files by their names, instead of those that the pins name.
ARG EDGETPU_MIRROR=
# `max` runs a USB stick faster and hotter. Reef has no checksum of it: bring your own.
ARG LIBEDGETPU_VARIANT=std
ARG LIBEDGETPU_SHA256=
# Another value asks again, where the builder remembers that the site couldn't be reached.
ARG EDGETPU_TRY=

COPY scripts/fetch.py /build/scripts/
COPY app/download.py /build/app/
COPY models/manifest.yaml /build/models/
RUN set -eux; \
    : "${EDGETPU_TRY}"; \
    /opt/reef/venv/bin/python /build/scripts/fetch.py --into /edgetpu --mode "${EDGETPU}" \
      --mirror "${EDGETPU_MIRROR}" --variant "${LIBEDGETPU_VARIANT}" \
      --sha256 "${LIBEDGETPU_SHA256}" --architecture "$(dpkg --print-architecture)"

# ---------------------------------------------------------------------------- our own files
# With modes of their own: COPY brings those of the checkout, and a umask of 077 leaves files that
# only root can read. Here, because a layer of the image would hold every file twice.
FROM ${BASE} AS sources

COPY LICENSE /opt/reef/
COPY scripts/healthcheck.sh scripts/sbom.py scripts/try.py /opt/reef/scripts/
COPY models /opt/reef/models
COPY app /opt/reef/app
COPY app/__init__.py /opt/bench/app/
COPY models/selftest_person.jpg /opt/bench/models/
COPY tests/pictures /opt/bench/tests/pictures
COPY bench /opt/bench/bench
RUN chmod -R u=rwX,go=rX /opt/reef /opt/bench

# ---------------------------------------------------------------------------- the benchmark
# An image of its own: docker build --target bench --build-arg BENCH=1 --tag reef-bench:local .
# Without BENCH its stages do nothing, because the classic builder passes through all of them on its
# way to the last one, the server, which takes nothing from here.
FROM wheels AS bench-wheels

ARG BENCH=
ARG PIP_INDEX_URL

COPY requirements/bench.txt /build/bench.txt
RUN set -eux; \
    mkdir /opt/bench; \
    [ -n "${BENCH}" ] || exit 0; \
    python3 -m venv /build/pip; \
    python3 -m venv --without-pip /opt/bench/venv; \
    /build/pip/bin/python -m pip --python /opt/bench/venv/bin/python install --quiet \
      --disable-pip-version-check --no-cache-dir --no-compile --only-binary :all: \
      --require-hashes --requirement /build/bench.txt; \
    rm -rf /build/pip; \
    find /opt/bench/venv/lib/python3*/site-packages -type d -name tests -prune -exec rm -r {} +; \
    /opt/bench/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/bench/venv

FROM ${BASE} AS bench

ARG BENCH=
RUN set -eux; \
    [ -n "${BENCH}" ] || exit 0; \
    apt-get update; \
    apt-get install --yes --no-install-recommends python3; \
    rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/log/alternatives.log; \
    find / -xdev -perm /6000 -exec chmod a-s {} +

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

WORKDIR /data
ENTRYPOINT ["/opt/bench/venv/bin/python", "/opt/bench/bench/as_owner.py"]

COPY --from=bench-wheels /opt/bench /opt/bench
COPY --from=sources /opt/bench /opt/bench

ARG REVISION=
ENV BENCH_REVISION=${REVISION}

RUN set -eux; \
    mkdir -p /data/benchmark_results; \
    [ -n "${BENCH}" ] || exit 0; \
    /opt/bench/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash \
      /opt/bench/app /opt/bench/bench; \
    /opt/bench/venv/bin/python /opt/bench/bench/benchmark.py --version

# ---------------------------------------------------------------------------- the image
FROM ${BASE}

# First, so that no package can take the numbers: volumes keep files by them.
RUN set -eux; \
    groupadd --gid 10001 reef; \
    useradd --uid 10001 --gid 10001 --home-dir /nonexistent --no-create-home \
      --shell /usr/sbin/nologin reef; \
    install --directory --owner reef --group reef /models /var/log/reef

# libusb is libedgetpu's. Nothing here may become root, so no file keeps that right.
RUN set -eux; \
    apt-get update; \
    apt-get install --yes --no-install-recommends libusb-1.0-0 python3; \
    rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/log/alternatives.log; \
    find / -xdev -perm /6000 -exec chmod a-s {} +

# Any user may run it (docker run --user), with a root that is read-only, and /tmp in memory.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/opt/reef \
    PYTHONUNBUFFERED=1 \
    REEF_HOST=0.0.0.0 \
    REEF_MODELS_DIR=/models \
    REEF_RUN_DIR=/tmp/reef

WORKDIR /opt/reef
EXPOSE 5000
STOPSIGNAL SIGTERM
ENTRYPOINT ["reef"]
CMD ["serve"]

# The first probe comes after one interval. (--start-interval needs an engine of 2024.) Docker
# itself spends some 17 ms of CPU time on each, so more of them would be seen.
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 CMD ["reef", "healthcheck"]

COPY --from=wheels /opt/reef /opt/reef
COPY --from=edgetpu /edgetpu /opt/reef
COPY --from=sources /opt/reef /opt/reef

RUN set -eux; \
    echo /opt/reef/lib >/etc/ld.so.conf.d/reef.conf; \
    ldconfig; \
    /opt/reef/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/reef/app; \
    printf '%s\n' '#!/bin/sh' '[ "$*" != healthcheck ] || exec /opt/reef/scripts/healthcheck.sh' \
      'exec /opt/reef/venv/bin/python -m app "$@"' >/usr/local/bin/reef; \
    chmod 755 /usr/local/bin/reef

ARG VERSION=0.1.0

# What is in here, and under which licences: /opt/reef/sbom.cdx.json and /opt/reef/licenses.
RUN /opt/reef/venv/bin/python /opt/reef/scripts/sbom.py --version "${VERSION}" --into /opt/reef \
      --venv /opt/reef/venv --manifest /opt/reef/models/manifest.yaml --record /opt/reef/image.json

USER 10001:10001

ARG REVISION=
ARG CREATED=
ARG BASE
LABEL org.opencontainers.image.title="Reef" \
      org.opencontainers.image.description="An object-detection server for Google's Coral Edge TPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${BASE}" \
      reef.edgetpu="see /opt/reef/image.json"

# An image that can't find a person in a picture is no image.
RUN ["/opt/reef/venv/bin/python", "/opt/reef/scripts/try.py"]
