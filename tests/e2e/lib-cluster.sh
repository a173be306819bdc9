# A Kubernetes cluster of one node: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, kubelet and containerd, with
# CNI's bridge, Services by name, and SPIRE with a stand-in of its CSI driver. Source it after lib.sh and lib-spire.sh.

need_cluster() {
  need etcd etcd-server
  need kubectl kubernetes-client
  need containerd containerd
  need nft nftables
  need iptables iptables
  need dnsmasq dnsmasq-base
  need ip iproute2
  need /usr/lib/cni/bridge containernetworking-plugins
  say "building the parts of the cluster and helm, if they are not there"
  tools=$("$root/tests/e2e/tools/kubernetes/build.sh" 2>"$work/tools-build.log")
}

# The rest of the script in namespaces of its own: its rules, links, mounts and processes are nobody else's, and end with it. What it
# needs of a network, it has fetched before.
in_own_namespaces() {
  [ -n "${PHIWARD_E2E_ALONE:-}" ] && return
  rm -rf "$work"
  PHIWARD_E2E_ALONE=1 exec unshare --net --mount --pid --fork --kill-child --mount-proc "$0"
}

# The address of the node, where its pods find the API server and names.
node=10.99.0.1

take_down() {
  # Only where the script is the first process of a namespace of its own: what follows ends every other one there is. It may also have
  # failed before that, among everybody's.
  [ $$ = 1 ] || return 0
  kill -KILL -1 2>/dev/null || true
  sleep 0.5
  awk -v at="$work/" 'index($2, at) == 1 {print $2}' /proc/mounts | tac | xargs -r umount -l 2>/dev/null || true
  find /sys/fs/cgroup -depth -type d -path '*/kubepods*' -exec rmdir {} + 2>/dev/null || true
}

cluster_up() {
  ip link set lo up
  # As the interface of a machine: pods are reached by routes, and everything else is nowhere.
  ip link add node0 type veth peer name node1
  ip link set node1 up
  ip address add "$node/24" dev node0
  ip link set node0 up
  ip route add default dev node0
  sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
  control_plane_up
  runtime_up
  node_up
}

control_plane_up() {
  etcd --data-dir etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster default=http://127.0.0.1:2380 >etcd.log 2>&1 &
  openssl genrsa -out accounts.key 2048 2>/dev/null
  openssl rsa -in accounts.key -pubout -out accounts.pub 2>/dev/null
  echo "e2e-token,e2e,1,system:masters" >tokens.csv
  # Webhooks are called at the endpoints of their Services, as where the API server is no pod of its cluster.
  "$tools/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --secure-port=6443 --advertise-address="$node" --cert-dir=apiserver \
    --service-account-key-file=accounts.pub --service-account-signing-key-file=accounts.key --service-account-issuer=https://e2e \
    --token-auth-file=tokens.csv --authorization-mode=RBAC --service-cluster-ip-range=10.96.0.0/16 \
    --enable-aggregator-routing=true --kubelet-preferred-address-types=InternalIP --allow-privileged=true >apiserver.log 2>&1 &
  cat >kubeconfig <<CONF
apiVersion: v1
kind: Config
clusters: [{name: e2e, cluster: {server: "https://$node:6443", insecure-skip-tls-verify: true}}]
users: [{name: e2e, user: {token: e2e-token}}]
contexts: [{name: e2e, context: {cluster: e2e, user: e2e}}]
current-context: e2e
CONF
  export KUBECONFIG=$work/kubeconfig
  until_true "the API server" kubectl get --raw /readyz
  "$tools/kube-controller-manager" --kubeconfig kubeconfig --service-account-private-key-file=accounts.key --leader-elect=false >controllers.log 2>&1 &
  "$tools/kube-scheduler" --kubeconfig kubeconfig --leader-elect=false >scheduler.log 2>&1 &
}

runtime_up() {
  mkdir cni
  cat >cni/10-bridge.conflist <<CONF
{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "dataDir": "$work/ipam", "ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd99::/64"}]],
  "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}]}
CONF
  cat >containerd.toml <<CONF
version = 2
root = "$work/containerd"
state = "$work/containerd-state"
[grpc]
address = "$work/containerd.sock"
[ttrpc]
address = "$work/containerd.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "e2e/pause:1"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$work/cni"
CONF
  containerd --config containerd.toml >containerd.log 2>&1 &
  until_true "containerd" ctr -a "$work/containerd.sock" version
  ctr -a "$work/containerd.sock" -n k8s.io images import images.tar >images.log
}

node_up() {
  cat >kubelet.yaml <<CONF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
failSwapOn: false
syncFrequency: 5s
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://$work/containerd.sock
clusterDNS: [$node]
clusterDomain: cluster.local
evictionHard: {memory.available: 1Mi}
imageGCHighThresholdPercent: 100
podLogsDir: $work/pod-logs
volumePluginDir: $work/volume-plugins
CONF
  "$tools/kubelet" --config kubelet.yaml --kubeconfig kubeconfig --root-dir "$work/kubelet" --cert-dir "$work/kubelet-pki" \
    --hostname-override node --node-ip "$node" >kubelet.log 2>&1 &
  cat >proxy.yaml <<CONF
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: $work/kubeconfig}
hostnameOverride: node
clusterCIDR: 10.244.0.0/16
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
CONF
  "$tools/kube-proxy" --config proxy.yaml >proxy.log 2>&1 &
  until_true "the node" eval "kubectl get node node | matches ' Ready '"
  # As CoreDNS does it: what a name says may be five seconds old.
  touch hosts
  dnsmasq --keep-in-foreground --no-hosts --no-resolv --user=root --listen-address="$node" --bind-interfaces --pid-file \
    --local=/cluster.local/ --local-ttl=5 --addn-hosts="$work/hosts" >dnsmasq.log 2>&1 &
  "$root/tests/e2e/tools/kubernetes/names.py" "https://$node:6443" e2e-token hosts $! 2>names.log &
}

# The agent of lib-spire.sh, its socket in pods by the name of the SPIFFE CSI driver: a stand-in that mounts the same.
spiffe_csi_up() {
  "$tools/socket-driver" --sockets "$work/own/sockets" --registry "$work/kubelet/plugins_registry" --address "$work/socket-driver.sock" >socket-driver.log 2>&1 &
  kubectl create -f - >/dev/null <<'CONF'
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: csi.spiffe.io}
spec: {attachRequired: false, podInfoOnMount: true, fsGroupPolicy: None, volumeLifecycleModes: [Ephemeral]}
CONF
  until_true "the node knows the driver" eval "kubectl get csinode node -o yaml | matches csi.spiffe.io"
}

# register_pod NAMESPACE SERVICE-ACCOUNT: its SPIFFE ID is the usual one.
register_pod() {
  server own entry create -parentID "$own_parent" -x509SVIDTTL 3600 -spiffeID "spiffe://hospital.local/ns/$1/sa/$2" \
    -selector "k8s:ns:$1" -selector "k8s:sa:$2" >>registered.log
}
