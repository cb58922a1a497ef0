# The image of the gateway: one binary, what it loads, and no shell. `scripts/image-rootfs` makes all of the last stage's files, and
# `make image-check` runs the binary in exactly these files, without a container engine.
#
#   docker build --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) --tag quotesign .
#
# The base is pinned by its version. Give RUST_IMAGE with the digest that your registry has it under, and keep that beside your policy:
# tags move. The toolchain is the one of rust-toolchain.toml.
ARG RUST_IMAGE=rust:1.95.0-slim-bookworm

FROM ${RUST_IMAGE} AS build
ARG SOURCE_DATE_EPOCH=0
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libstdc++6 make tzdata \
    && rm -rf /var/lib/apt/lists/*
# No name that scripts/image-binary gives to paths, as which it would find this one in the binary.
WORKDIR /build/quotesign
COPY . .
RUN make image-binary && scripts/image-rootfs target/release/quotesign /rootfs

FROM scratch
LABEL org.opencontainers.image.title="quotesign" \
      org.opencontainers.image.description="A gateway that signs price quotes with keys that never leave their hardware" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /rootfs/ /
USER 65532:65532
# Callers, operators, key sets, health and metrics.
EXPOSE 8443 8444 8445 9464
ENTRYPOINT ["/usr/bin/quotesign"]
CMD ["serve", "--config", "/etc/quotesign/config/quotesign.toml"]
