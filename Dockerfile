# embedserve for the CPU, and with `--target cuda` for NVIDIA GPUs as well.
#
#   docker build -t embedserve .
#   docker run -p 8080:8080 -e EMBEDSERVE_API_KEY=secret -v embedserve-cache:/var/cache/embedserve embedserve
#
#   docker build --target cuda --build-arg FETCHER=build-cuda -t embedserve:cuda .
#   docker run --gpus all -p 8080:8080 -e EMBEDSERVE_API_KEY=secret -v embedserve-cache:/var/cache/embedserve \
#     embedserve:cuda --device cuda
#
# The image listens on every address of its container, so it wants a key; EMBEDSERVE_INSECURE=1 serves without one.
#
# For networks without the Hub, put models into the image while it is built:
#
#   docker build --build-arg MODELS="sentence-transformers/all-MiniLM-L6-v2" -t embedserve:minilm .
#   docker run --network none -e EMBEDSERVE_OFFLINE=1 ... embedserve:minilm
#
# MODELS takes several, separated by spaces; the first model to serve is still chosen with --model. A named volume starts as
# a copy of what the image holds; a folder mounted over the cache hides it.

# The build whose executable fetches MODELS: with `build-cuda` an image for GPUs compiles one server instead of two.
ARG FETCHER=build

# Builds write the list of what they are made of into the executable, where scanners of images look for it.
FROM rust:1.95.0-bookworm AS source
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo install --locked --version 0.7.7 cargo-auditable
WORKDIR /src
COPY . .


FROM source AS build
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo auditable build --release --locked --bin embedserve \
    && install -D target/release/embedserve /out/embedserve


# Needs no CUDA: nothing of it is linked.
FROM source AS build-cuda
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,id=target-cuda \
    cargo auditable build --release --locked --features cuda --bin embedserve \
    && install -D target/release/embedserve /out/embedserve


# The one library beside the driver, which the container runtime brings: half a gigabyte of the usual three.
FROM python:3.12-slim-bookworm AS cublas
RUN pip install --no-cache-dir --no-deps --target /wheel nvidia-cublas-cu12==12.4.5.8 \
    && install -D /wheel/nvidia/cublas/lib/libcublasLt.so.12 /out/libcublasLt.so.12


FROM ${FETCHER} AS fetcher


# Fetches with pip too, which the finished image does without.
FROM debian:bookworm-slim AS models
ARG MODELS=""
# hadolint ignore=DL3008
RUN if [ -n "$MODELS" ]; then \
      apt-get update \
      && apt-get install -y --no-install-recommends ca-certificates python3-pip \
      && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=fetcher /out/embedserve /usr/local/bin/embedserve
ENV XDG_CACHE_HOME=/var/cache/embedserve
# A token for models that need one comes with --secret id=hf_token,env=HF_TOKEN. MODELS is split into words on purpose: each
# is one model. Any user of group 0 may write, as platforms that choose the user themselves want it.
# hadolint ignore=SC2086
RUN --mount=type=secret,id=hf_token \
    if [ -f /run/secrets/hf_token ]; then export HF_TOKEN_PATH=/run/secrets/hf_token; fi \
    && mkdir -p "$XDG_CACHE_HOME" \
    && if [ -n "$MODELS" ]; then embedserve models pull $MODELS; fi \
    && chmod -R g=u "$XDG_CACHE_HOME"


FROM debian:bookworm-slim AS runtime
LABEL org.opencontainers.image.title="embedserve" \
      org.opencontainers.image.description="An OpenAI-compatible embeddings server" \
      org.opencontainers.image.licenses="Apache-2.0"
# By number, so that an orchestrator can see that it is not root.
RUN groupadd --system --gid 10001 embedserve \
    && useradd --system --uid 10001 --gid 10001 --home-dir /var/cache/embedserve --shell /usr/sbin/nologin embedserve
COPY --from=models --chown=10001:0 /var/cache/embedserve /var/cache/embedserve
USER 10001:10001
WORKDIR /var/cache/embedserve
# The port is the server's own default, and the cache is named as every program's: PORT, HF_HOME and the rest go before both.
ENV EMBEDSERVE_HOST=0.0.0.0 \
    XDG_CACHE_HOME=/var/cache/embedserve \
    LOG_FORMAT=json
VOLUME /var/cache/embedserve
EXPOSE 8080
# The start period covers a first download; a server that still loads is "starting", not unhealthy.
HEALTHCHECK --interval=15s --timeout=6s --start-period=10m --start-interval=1s --retries=3 \
    CMD ["embedserve", "health"]
ENTRYPOINT ["embedserve"]


FROM runtime AS cuda
COPY --from=cublas /out/libcublasLt.so.12 /usr/lib/x86_64-linux-gnu/libcublasLt.so.12
COPY --from=build-cuda /out/embedserve /usr/local/bin/embedserve
# What the container runtime reads where no base image of CUDA says it.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility


# The last one is what is built without --target.
FROM runtime
COPY --from=build /out/embedserve /usr/local/bin/embedserve
