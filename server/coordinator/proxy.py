"""The reverse proxy that sites reach: TLS, the fleet's paths, nothing else. nginx does the work.

Flower's one port also serves its Control and Runtime interfaces, which ask for no key: whoever
reaches them starts runs. Only ``/v1/fleet/`` and ``/health`` pass, by the path as nginx
normalises it; the SuperLink is sent that normalised path, so that both decide on the same one.
Messages pass through memory alone: nothing of them is written to a disk here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import write_atomically
from lorica.server.coordinator.home import CoordinatorConfig, CoordinatorHome

REFUSAL = "Only the fleet interface of this coordinator is served here."
"""What any other path is answered with."""

_TEMPLATE = """\
# Written by `lorica coordinator start`; changes are lost. Settings: coordinator.toml
daemon off;
worker_processes 2;
pid "{run}/nginx.pid";
error_log stderr notice;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  server_tokens off;
  default_type application/octet-stream;
  client_body_temp_path "{proxy}/body";
  proxy_temp_path "{proxy}/upstream";
  fastcgi_temp_path "{proxy}/unused";
  uwsgi_temp_path "{proxy}/unused";
  scgi_temp_path "{proxy}/unused";
  client_max_body_size {largest}m;
  client_header_timeout 30s;
  client_body_timeout 120s;
  send_timeout 120s;
  keepalive_timeout 120s;
  limit_conn_zone $binary_remote_addr zone=by_address:1m;
  upstream superlink {{ server 127.0.0.1:{private_port}; keepalive 32; }}
  server {{
    listen {listen}:{port} ssl;
    ssl_certificate "{tls}/public.crt";
    ssl_certificate_key "{tls}/public.key";
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:tls:1m;
    ssl_session_tickets off;
    limit_conn by_address 64;
    merge_slashes on;
    proxy_http_version 1.1;
    proxy_request_buffering off;
    proxy_max_temp_file_size 0;
    proxy_set_header Connection "";
    proxy_set_header Host localhost;
    proxy_connect_timeout 5s;
    proxy_read_timeout 120s;
    proxy_send_timeout 120s;
    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate "{authority}/ca.crt";
    proxy_ssl_name localhost;
    proxy_ssl_server_name on;
    location /v1/fleet/ {{ proxy_pass https://superlink/v1/fleet/; }}
    location = /health {{
      limit_except GET {{ deny all; }}
      proxy_pass https://superlink/health;
    }}
    location / {{ default_type text/plain; return 403 "{refusal}\\n"; }}
  }}
}}
"""


def find_nginx() -> str:
    """Path of the nginx program. Raises LOR-726."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise LoricaError(
            Code.PROGRAM_MISSING,
            "nginx, the reverse proxy that sites reach, was not found.",
            mend="Install it (Debian: apt-get install nginx-light); Lorica writes its settings and "
            "starts it itself, so the package's own service may stay off.",
        )
    return found


def write_proxy(home: CoordinatorHome, config: CoordinatorConfig) -> Path:
    """Write nginx.conf and return its path."""
    home.proxy.mkdir(mode=0o700, exist_ok=True)
    path = home.proxy / "nginx.conf"
    listen = f"[{config.listen}]" if ":" in config.listen else config.listen
    text = _TEMPLATE.format(
        run=home.run,
        proxy=home.proxy,
        tls=home.tls,
        authority=home.authority,
        largest=config.largest_message,
        listen=listen,
        port=config.port,
        private_port=config.private_port,
        refusal=REFUSAL,
    )
    write_atomically(path, text)
    return path


def proxy_command(nginx: str, settings: Path) -> list[str]:
    """The command that serves with ``settings`` in the foreground."""
    return [nginx, "-c", str(settings), "-p", str(settings.parent), "-e", "stderr"]


def end_orphans(home: CoordinatorHome) -> list[int]:
    """End workers whose master, this coordinator's last proxy, was killed: they hold its port.

    Only nginx's own processes in the session of the process that ``run/nginx.pid`` names end, and
    only where that process is no more; its number is no other's as long as they live.

    Returns:
        The process ids of those that were ended.
    """
    try:
        master = int((home.run / "nginx.pid").read_text())
    except (OSError, ValueError):
        return []
    if _title(master):
        return []
    ended = []
    for entry in Path("/proc").glob("[0-9]*"):
        worker = int(entry.name)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(worker) == master and _title(worker).startswith(b"nginx: "):
                os.kill(worker, signal.SIGKILL)
                ended.append(worker)
    return ended


def _title(process: int) -> bytes:
    """A process's command line; empty where it ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""
