# What the scripts with SPIRE share. Source it after lib.sh.
command -v go >/dev/null || { say "needs go (1.26 or later)"; exit 1; }

spire=$target/spire/$(sha256sum <"$root/tests/e2e/tools/spire/go.mod" | cut -c1-16)
build_spire() {
  [ -x "$spire/spire-server" ] && return
  say "building SPIRE"
  mkdir -p "$spire"
  for part in spire-agent spire-server; do
    (cd "$root/tests/e2e/tools/spire" && go build -o "$spire/$part" "github.com/spiffe/spire/cmd/$part") 2>"$work/spire-build.log"
  done
}

# server NAME ARGUMENTS...: asks the server whose folder is NAME.
server() {
  local name=$1
  shift
  "$spire/spire-server" "$@" -socketPath "$work/$name/server.sock"
}

# spire_up NAME TRUST-DOMAIN PORT [SERVER-SETTINGS [SERVER-PLUGINS [AGENT-PLUGINS]]]: a server and an agent in the folder NAME, which is
# made. The agent's socket is NAME/sockets/spire-agent.sock, its process NAME_agent_pid, the parent of its workloads NAME_parent.
spire_up() {
  local name=$1 domain=$2 port=$3
  mkdir -p "$name/server" "$name/agent" "$name/sockets"
  cat >"$name/server.conf" <<CONF
server {
  bind_address = "127.0.0.1"
  bind_port = "$port"
  socket_path = "$work/$name/server.sock"
  trust_domain = "$domain"
  data_dir = "$work/$name/server"
  log_level = "WARN"
  ca_ttl = "24h"
  agent_ttl = "1h"
  default_x509_svid_ttl = "30s"
  ${4:-}
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3", connection_string = "$work/$name/server/datastore.sqlite3" } }
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
  ${5:-}
}
CONF
  cat >"$name/agent.conf" <<CONF
agent {
  data_dir = "$work/$name/agent"
  log_level = "WARN"
  server_address = "127.0.0.1"
  server_port = "$port"
  socket_path = "$work/$name/sockets/spire-agent.sock"
  trust_bundle_path = "$work/$name/bootstrap.pem"
  trust_domain = "$domain"
  experimental { sync_interval = "1s" }
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data { discover_workload_path = true } }
  ${6:-}
}
CONF
  "$spire/spire-server" run -config "$name/server.conf" >"$name-server.log" 2>&1 &
  until_true "the SPIRE server of $domain" server "$name" healthcheck
  server "$name" bundle show >"$name/bootstrap.pem"
  local token
  token=$(server "$name" token generate -ttl 600 | awk '/^Token/{print $2}')
  "$spire/spire-agent" run -config "$name/agent.conf" -joinToken "$token" >"$name-agent.log" 2>&1 &
  eval "${name}_agent_pid=$!"
  eval "${name}_parent=spiffe://$domain/spire/agent/join_token/$token"
  until_true "the SPIRE agent of $domain" "$spire/spire-agent" healthcheck -socketPath "$work/$name/sockets/spire-agent.sock"
}

# register NAME SPIFFE-ID PROGRAM [MORE...]: a workload is known by the path of its program. Prints the entry's id.
register() {
  local name=$1 id=$2 program=$3
  shift 3
  eval "local parent=\$${name}_parent"
  server "$name" entry create -parentID "$parent" -x509SVIDTTL 30 -spiffeID "$id" -selector "unix:path:$program" "$@" |
    awk '/Entry ID/{print $4}'
}

# of_agent TRUST-DOMAIN NAME: the identity of a workload of the agent whose folder is NAME.
of_agent() { printf 'trust_domain: %s, source: spire, spire: {socket: "unix://%s/%s/sockets/spire-agent.sock"}' "$1" "$work" "$2"; }
