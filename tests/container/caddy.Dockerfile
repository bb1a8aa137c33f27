# Stands in for the official image of Caddy where no registry answers: Debian's package.
ARG BASE
FROM ${BASE}
RUN set -eux; \
    apt-get update; \
    apt-get install --yes --no-install-recommends caddy; \
    rm -rf /var/lib/apt/lists/*
