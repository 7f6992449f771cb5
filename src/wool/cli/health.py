"""`wool health`: whether a server serves, for probes."""

from __future__ import annotations

from typing import Any

import click
import grpc

from wool import protocol
from wool.cli.options import SETTINGS, Tls, tls
from wool.runtime.worker.health import SERVICE, SERVING

HEALTHY, UNHEALTHY, UNKNOWN = 0, 1, 2


@click.command(context_settings=SETTINGS)
@click.argument("address")
@tls
@click.option("--service", default="", help=f"Such as {protocol.SERVICE}. [default: the server]")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=3.0,
    show_default=True,
    metavar="SECONDS",
)
@click.pass_context
def health(
    ctx: click.Context, /, *, address: str, service: str, timeout: float, **given: Any
) -> None:
    """Ask the server at ADDRESS, HOST:PORT or unix:PATH, by grpc.health.v1, whether it serves.

    Ends with 0 if it does, 1 if it does not, such as while it drains, and 2 if it does not answer.
    """
    with _channel(address, Tls(**given)) as channel:
        check = channel.unary_unary(f"/{SERVICE}/Check", _request, _status)
        try:
            status = check(service, timeout=timeout)
        except grpc.RpcError as exc:
            click.echo(f"{address} does not say: {exc.details()}", err=True)
            ctx.exit(UNKNOWN)
    click.echo("SERVING" if status == SERVING else "NOT_SERVING")
    ctx.exit(HEALTHY if status == SERVING else UNHEALTHY)


def _channel(address: str, given: Tls) -> grpc.Channel:
    provider = given.provider()
    if provider is None:
        return grpc.insecure_channel(address)
    options = [("grpc.ssl_target_name_override", given.identity)] if given.identity else []
    return grpc.secure_channel(address, provider.credentials.client_credentials(), options)


def _request(service: str) -> bytes:
    """A HealthCheckRequest, whose field 1 is a string, as that of a `Nack` is."""
    return protocol.Nack(reason=service).SerializeToString()


def _status(response: bytes) -> int:
    """That of a HealthCheckResponse, whose field 1 it is; 0, for unknown, is left out."""
    return response[1] if response else 0
