{{/*
One component = one DaemonSet or Deployment with its own ServiceAccount,
ClusterRole and metrics objects. A component's file (see firewall.yaml) calls
`kube-router-rs.component` with a dict of

  root    the chart's top context
  name    name of crate, image, DaemonSet and everything else it owns
  values  its section of values.yaml
  rules   list of ClusterRole rules: what it watches, and nothing more;
          nodeEvents adds create on events for DaemonSets
  args    list of arguments of its own; the common ones are added here

and, where it needs them,

  kind          Deployment, for one that runs for the whole cluster
  localRules    list of rules in the release's own namespace
  ports         ports of a DaemonSet's container beside health and metrics
  capabilities  list for a DaemonSet's container; NET_ADMIN if absent
  podNetns      true: a DaemonSet may enter the network namespaces of pods
  hostFolders   folders of the node that a DaemonSet may write, by name; their
                paths are the same in the container
  files         a Deployment's files by name, mounted at /etc/<name>

Names are fixed, not derived from the release: the components own names in the
kernel of each node, so two releases of one component cannot live in a cluster.
*/}}

{{- define "kube-router-rs.component" -}}
{{- if .values.enabled }}
{{- if and .values.podMonitor.enabled (not .values.metrics.enabled) }}
{{- fail (printf "%s: podMonitor.enabled needs metrics.enabled" .name) }}
{{- end }}
{{- include "kube-router-rs.checkPorts" .root }}
{{ include "kube-router-rs.access" . }}
---
{{ if eq (.kind | default "DaemonSet") "Deployment" -}}
{{ include "kube-router-rs.deployment" . }}
{{- else -}}
{{ include "kube-router-rs.daemonset" . }}
{{- end }}
{{- include "kube-router-rs.monitoring" . }}
{{- end }}
{{- end }}

{{/* All DaemonSets share the node's network: none may have a port of another. */}}
{{- define "kube-router-rs.checkPorts" -}}
{{- $taken := dict }}
{{- range $component := list "firewall" "proxy" "cni" }}
{{- $values := index $.Values $component }}
{{- if $values.enabled }}
{{- $ports := dict "health" $values.health.port }}
{{- if $values.metrics.enabled }}{{ $_ := set $ports "metrics" $values.metrics.port }}{{ end }}
{{- with $values.healthz }}{{ if .port }}{{ $_ := set $ports "healthz" .port }}{{ end }}{{ end }}
{{- range $what, $port := $ports }}
{{- $name := printf "%s.%s.port" $component $what }}
{{- with get $taken (toString $port) }}
{{- fail (printf "%s and %s are both %v" . $name $port) }}
{{- end }}
{{- $_ := set $taken (toString $port) $name }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Labels that select the pods: never change them, a DaemonSet's selector is immutable. */}}
{{- define "kube-router-rs.selectorLabels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/part-of: kube-router-rs
{{- end }}

{{- define "kube-router-rs.labels" -}}
{{ include "kube-router-rs.selectorLabels" . }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "kube-router-rs.image" -}}
{{- $image := printf "%s/%s" .root.Values.image.registry .values.image.name -}}
{{- if .values.image.digest -}}
{{ printf "%s@%s" $image .values.image.digest }}
{{- else -}}
{{ printf "%s:%s" $image (.values.image.tag | default .root.Chart.AppVersion) }}
{{- end -}}
{{- end }}

{{- define "kube-router-rs.access" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "kube-router-rs.labels" . | nindent 4 }}
# The {{ .kind | default "DaemonSet" }} asks for the token itself; nobody else gets one by default.
automountServiceAccountToken: false
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ .name }}
  labels: {{- include "kube-router-rs.labels" . | nindent 4 }}
{{- $rules := .rules }}
{{- if and .root.Values.nodeEvents.enabled (ne (.kind | default "DaemonSet") "Deployment") }}
{{- $rules = append $rules (dict "apiGroups" (list "") "resources" (list "events") "verbs" (list "create")) }}
{{- end }}
rules: {{- toYaml $rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .name }}
  labels: {{- include "kube-router-rs.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ .name }}
    namespace: {{ .root.Release.Namespace }}
{{- if .localRules }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "kube-router-rs.labels" . | nindent 4 }}
rules: {{- toYaml .localRules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "kube-router-rs.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ .name }}
    namespace: {{ .root.Release.Namespace }}
{{- end }}
{{- end }}
