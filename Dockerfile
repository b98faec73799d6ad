# One image for every chain: `netsage-pipeline run` by default, any other of its commands by name.

FROM python:3.11-slim-bookworm AS build
# pytricia is published as source only.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE THIRD_PARTY_NOTICES.md ./
COPY netsage_pipeline netsage_pipeline
COPY stages stages
COPY lookups lookups
COPY conf.d conf.d
COPY demo demo
COPY new_stage new_stage
RUN pip wheel --no-cache-dir --wheel-dir /wheels '.[kafka]'

FROM python:3.11-slim-bookworm
# nfdump for the importer, nfcapd and sfcapd for the collectors.
RUN apt-get update \
 && apt-get install -y --no-install-recommends nfdump nfdump-sflow \
 && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links=/wheels --root-user-action=ignore 'netsage-pipeline[kafka]'
# The uid is fixed so that directories of the host can be given to it. The state holds full addresses: for its owner only.
RUN groupadd --gid 10001 netsage \
 && useradd --uid 10001 --gid netsage --no-create-home --home-dir /var/lib/netsage --shell /usr/sbin/nologin netsage \
 && install -d -m 0755 /var/lib/netsage /var/lib/netsage/lookups \
 && install -d -m 0755 -o netsage -g netsage /var/lib/netsage/captures \
 && install -d -m 0700 -o netsage -g netsage /var/lib/netsage/state /var/lib/netsage/sink /var/lib/netsage/import /var/lib/netsage/router
ENV NETSAGE_LOOKUPS=/var/lib/netsage/lookups \
    NETSAGE_STATE=/var/lib/netsage/state \
    NETSAGE_SINK_STATE=/var/lib/netsage/sink \
    NETSAGE_IMPORT_STATE=/var/lib/netsage/import \
    NETSAGE_ROUTER_STATE=/var/lib/netsage/router \
    NETSAGE_NFCAPD_DIR=/var/lib/netsage/captures \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/netsage
ENTRYPOINT ["netsage-pipeline"]
CMD ["run"]
