"""The app behind all peers: nginx, which answers from memory and costs little, so that it is not what is measured."""

import subprocess

import load

JSON_150 = '{"resourceType":"Patient","id":"1","name":[{"family":"Testperson","given":["Ada"]}],"birthDate":"1950-12-10","active":true,"note":"150 bytes of JSON."}'


class App:
    """GET answers 150 B, 16 KiB or 1 MiB by path; POST answers 201 once the whole body was read."""

    def __init__(self, place):
        self.place = place

    def __enter__(self):
        folder = self.place.state / "app"
        (folder / "html").mkdir(parents=True)
        for name, size in (("medium", "16k"), ("large", "1m")):
            (folder / "html" / name).write_bytes(b"x" * load.SIZES[size])
        (folder / "nginx.conf").write_text(config(folder, self.place.app_port))
        log = open(folder / "log", "wb")
        self.child = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], stdout=log, stderr=log)
        return self

    def __exit__(self, *_):
        self.child.terminate()
        self.child.wait(10)


def config(folder, port):
    """`return` answers before the body is there, so a POST goes through a second server that gets no body."""
    return f"""\
user root;
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/err;
events {{ worker_connections 25000; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; sendfile on; open_file_cache max=10;
  client_max_body_size 0; client_body_buffer_size 2m;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream taken {{ server unix:{folder}/taken.sock; keepalive 512; keepalive_requests 1000000000; }}
  server {{ listen unix:{folder}/taken.sock; return 201; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /fhir/Patient/small {{ default_type application/json; return 200 '{JSON_150}'; }}
    location = /fhir/Observation {{
      proxy_pass http://taken; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_pass_request_body off; proxy_set_header Content-Length "";
    }}
    location /fhir/Patient/ {{ alias {folder}/html/; }}
  }}
}}
"""
