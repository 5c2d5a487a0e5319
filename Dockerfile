# syntax=docker/dockerfile:1
#
#   docker build -t embedserve .                    CPUs
#   docker build -t embedserve:cuda --target cuda . GPUs of NVIDIA
#
# docs/deploy.md says how to run the images.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The index of PyTorch's CPU builds. The default index has builds with CUDA, gigabytes larger.
ARG TORCH_INDEX_URL=""
# Extras of pyproject.toml: the client libraries of providers. `voyage` brings a hundred more packages.
ARG EXTRAS="cohere,openai,tiktoken"
ENV PATH=/opt/embedserve/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    XDG_CACHE_HOME=/var/cache
WORKDIR /src

# The dependencies are a layer of their own, which a change of the source leaves as it is.
COPY constraints.txt pyproject.toml ./
RUN python -m venv /opt/embedserve \
    && pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} -c constraints.txt torch
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        | grep -v '^embedserve-client' > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt

COPY clients/python clients/python
COPY benchmarks benchmarks
COPY configs configs
COPY serve_app serve_app
COPY LICENSE README.md serve_config.yaml ./
RUN pip install -c constraints.txt ./clients/python ".[${EXTRAS}]"

FROM build AS prepared
# Any machine can build the image: the configuration sets fp32, which each CPU computes.
RUN embedserve prepare container

FROM ${PYTHON_IMAGE} AS runtime
# tini ends the zombies of Ray's processes. The base image's version of it is the distribution's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /var/lib/embedserve --shell /usr/sbin/nologin embedserve \
    && install -d -o embedserve -g embedserve -m 0755 /etc/embedserve /var/cache/embedserve \
    && install -d -o embedserve -g embedserve -m 0700 /var/lib/embedserve
COPY --from=build /opt/embedserve /opt/embedserve
# All that the service writes is below /var/lib/embedserve and /tmp, and Ray's objects in /dev/shm: the
# root may be read-only. Ray keeps sockets in /tmp, whose path must stay short.
ENV HOME=/var/lib/embedserve \
    PATH=/opt/embedserve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    XDG_CACHE_HOME=/var/cache
WORKDIR /var/lib/embedserve
USER 10001
VOLUME /var/lib/embedserve
EXPOSE 8000
# A replica that finds no prepared model takes minutes until the first answer.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
# The exec form: the service itself gets the signal, and answers the requests in flight.
ENTRYPOINT ["tini", "--", "embedserve"]

FROM runtime AS cuda
# NVIDIA's container toolkit adds the driver of the host; torch brings the other libraries.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["serve", "container-gpu"]

# The last stage is what `docker build` builds by default.
FROM runtime AS cpu
COPY --from=prepared --chown=embedserve /var/cache/embedserve /var/cache/embedserve
CMD ["serve", "container"]
