# What must hold on the node of `run`, which sources this.

# ready NAMESPACE SELECTOR COUNT: so many pods are there, each ready.
ready() {
    local states
    states=$(kubectl -n "$1" get pods -l "$2" -o 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}')
    [ "$(grep -c True <<<"$states")" = "$3" ] && ! grep -q False <<<"$states"
}

# condition TYPE STATUS REASON: of the node.
condition() {
    [ "$(kubectl get node $node -o "jsonpath={.status.conditions[?(@.type==\"$1\")]['status','reason']}")" = "$2 $3" ]
}

has_cidrs() { kubectl get node $node -o 'jsonpath={.spec.podCIDRs}' | grep -q fd00; }

# links COUNT: that pods have on the node.
links() { [ "$(ip -o link show type veth | wc -l)" = "$1" ]; }

# reserved COUNT: addresses.
reserved() { [ "$(find /var/lib/cni/networks -type f | grep -cE '/(10[.]244|fd00)[^/]*$')" = "$1" ]; }

# pod NAMESPACE NAME LABELS [MORE]: a web server.
pod() {
    kubectl apply -f - <<YAML
apiVersion: v1
kind: Pod
metadata: {namespace: $1, name: $2, labels: {$3}}
spec:
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
    - {name: web, image: localhost/pod:1, imagePullPolicy: Never, ports: [{name: http, containerPort: 80 ${4:-}}],
       readinessProbe: {httpGet: {port: 80}, periodSeconds: 1}}
YAML
} >/dev/null

# address NAMESPACE NAME FAMILY
address() {
    local index=0
    [ "$3" = 4 ] || index=1
    kubectl -n "$1" get pod "$2" -o "jsonpath={.status.podIPs[$index].ip}"
}

request='GET / HTTP/1.0\r\n\r\n'
# reaches NAMESPACE NAME ADDRESS: from a pod.
reaches() {
    kubectl -n "$1" exec "$2" -- sh -c "printf '$request' | nc -w 2 $3 80" | grep -q "of the server"
}
not_reaches() { ! reaches "$@"; }
node_reaches() { printf "$request" | "$programs/bin/busybox" nc -w 2 "$1" "$2" | grep -q "of the server"; }

balanced() {
    [[ $(kubectl get service "$1" -o 'jsonpath={.status.loadBalancer.ingress[0].ip}') == 198.51.100.* ]]
}
leader() { kubectl -n kube-system get lease kube-router-lballoc -o 'jsonpath={.spec.holderIdentity}'; }
another_leads() { local now; now=$(leader); [ -n "$now" ] && [ "$now" != "$1" ]; }

check() {
    local family name before

    echo "- the node is there, and waits for its network"
    eventually 60 "the node is there" kubectl get node $node
    eventually 30 "it has CIDRs of both families" has_cidrs

    echo "- the manifests are taken as they are (svc-proxy-ipvs stays away: no IPVS in this kernel)"
    kubectl label node $node svc-proxy=no >/dev/null
    # This kubectl does not know all of today's fields.
    kubectl apply --validate=false -f deploy/manifests/bare-metal.yaml >"$work/applied"
    kubectl -n kube-system patch daemonset svc-proxy-ipvs -p '{"spec": {"template": {"spec": {"nodeSelector": {"svc-proxy": "yes"}}}}}' >/dev/null

    echo "- cni-bridge-agent gives the node its network; everything gets ready, with the capabilities, users and RBAC of the manifests"
    eventually 120 "cni-bridge-agent is ready" ready kube-system app.kubernetes.io/name=cni-bridge-agent 1
    eventually 60 "the node is ready" condition Ready True KubeletReady
    kubectl get node $node -o 'jsonpath={.status.conditions[?(@.type=="NetworkUnavailable")]}' | grep -q '"status":"False"' || fail "NetworkUnavailable is not False"
    eventually 120 "npc-firewall is ready" ready kube-system app.kubernetes.io/name=npc-firewall 1
    eventually 120 "two of lb-ipam are ready" ready kube-system app.kubernetes.io/name=lb-ipam 2

    echo "- pods have an address of each family, and reach each other; a host port leads to its pod"
    kubectl create namespace other >/dev/null
    for name in default other; do eventually 30 "there is an account in $name" kubectl -n $name get serviceaccount default; done
    pod default server "app: server" ", hostPort: 8080"
    pod default client "app: client"
    pod other stranger "app: client"
    eventually 60 "pods are ready" ready default app 2
    eventually 60 "pods are ready" ready other app 1
    for family in 4 6; do
        for name in "default client" "other stranger"; do
            eventually 10 "$name reaches the server by IPv$family" reaches $name "$(address default server $family)"
        done
    done
    eventually 10 "the host port" node_reaches $api 8080

    echo "- a policy refuses what it does not allow; the kubelet's probes still pass"
    kubectl apply -f - >/dev/null <<'YAML'
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: of-the-server}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: http}]}]
YAML
    for family in 4 6; do
        eventually 10 "the stranger is refused by IPv$family" not_reaches other stranger "$(address default server $family)"
        eventually 10 "the client is not" reaches default client "$(address default server $family)"
    done
    eventually 10 "the client's label counts" kubectl label pod client app=gone --overwrite
    eventually 10 "the client is refused" not_reaches default client "$(address default server 4)"
    kubectl label pod client app=client --overwrite >/dev/null
    eventually 10 "the client is allowed again" reaches default client "$(address default server 4)"

    echo "- it is in force while npc-firewall is replaced"
    before=$(kubectl -n kube-system get pods -l app.kubernetes.io/name=npc-firewall -o name)
    kubectl -n kube-system delete "$before" --wait=false >/dev/null
    while kubectl -n kube-system get "$before" >/dev/null 2>&1; do
        not_reaches other stranger "$(address default server 4)" || fail "a refused connection came through"
    done
    eventually 60 "npc-firewall is ready again" ready kube-system app.kubernetes.io/name=npc-firewall 1
    not_reaches other stranger "$(address default server 4)" || fail "a refused connection came through"
    reaches default client "$(address default server 4)" || fail "an allowed connection was refused"

    echo "- a Service of type LoadBalancer gets an address; the next one too when the leader is gone"
    kubectl create service loadbalancer first --tcp=80 >/dev/null
    eventually 30 "the first has an address" balanced first
    before=$(leader)
    kubectl -n kube-system delete pod "${before%%_*}" --force --grace-period=0 >/dev/null 2>&1
    kubectl create service loadbalancer second --tcp=80 >/dev/null
    eventually 60 "another leads" another_leads "$before"
    eventually 30 "the second has an address" balanced second
    [ "$(kubectl get service first -o 'jsonpath={.status.loadBalancer.ingress[0].ip}')" != "$(kubectl get service second -o 'jsonpath={.status.loadBalancer.ingress[0].ip}')" ] || fail "two Services have one address"

    echo "- twenty pods come at once, each with an address of its own, and go"
    kubectl create deployment many --image=localhost/pod:1 --replicas=20 >/dev/null
    eventually 120 "twenty pods are ready" ready default app=many 20
    kubectl get pods -A -o 'jsonpath={range .items[*]}{range .status.podIPs[*]}{.ip}{"\n"}{end}{end}' | grep -v $api | sort >"$work/addresses"
    [ "$(wc -l <"$work/addresses")" = 50 ] && [ "$(uniq "$work/addresses" | wc -l)" = 50 ] || fail "not 50 addresses: $(cat "$work/addresses")"
    kubectl delete deployment many >/dev/null

    echo "- nothing is left of pods that are gone"
    for name in server client; do kubectl delete pod $name --wait >/dev/null; done
    kubectl -n other delete pod stranger --wait >/dev/null
    eventually 60 "only lb-ipam's pods have links" links 2
    eventually 10 "only they have addresses" reserved 4
    nft list table inet cni_bridge >"$work/rules" 2>/dev/null && grep -q 8080 "$work/rules" && fail "the host port is left: $(cat "$work/rules")"

    echo "- nothing was forbidden, and nothing restarted"
    for name in "${components[@]}"; do
        kubectl -n kube-system logs -l "app.kubernetes.io/name=$name" --tail=-1 >"$work/$name.said"
        ! grep -i forbidden "$work/$name.said" || fail "$name asked for what its role does not allow"
    done
    kubectl -n kube-system get pods -o 'jsonpath={range .items[*]}{.status.containerStatuses[0].restartCount}{"\n"}{end}' | grep -vx 0 && fail "something restarted"
    true
}
