# microclip in a container, for a cluster that runs images: `docker build -t microclip .`
# All packages come as wheels, so nothing is compiled and no compiler stays inside. Nearly all of the
# image is torch and its CUDA libraries. docs/cluster.md says how it is used and what was not tried.
FROM python:3.11-slim-bookworm AS wheel
# kubectl starts the pods of a study. It is one file, and of any version.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends kubernetes-client \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
COPY --from=wheel /wheels /wheels
COPY --from=wheel /usr/bin/kubectl /usr/local/bin/kubectl
RUN python -m pip install --no-cache-dir /wheels/*.whl \
    && useradd --create-home --uid 1000 microclip
USER 1000
WORKDIR /home/microclip
CMD ["microclip", "doctor"]
