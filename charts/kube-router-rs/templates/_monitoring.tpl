{{/*
Objects for the Prometheus operator and for Grafana's dashboard sidecar, each
off by default. Rules and dashboard come from files/ as they are: they are the
same files that deploy/alerts and deploy/dashboards offer without Helm.
*/}}
{{- define "kube-router-rs.monitoring" -}}
{{- if .values.podMonitor.enabled }}
---
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "kube-router-rs.labels" . | nindent 4 }}
    {{- with .values.podMonitor.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  selector:
    matchLabels: {{- include "kube-router-rs.selectorLabels" . | nindent 6 }}
  # The job name that alerts and dashboard expect.
  jobLabel: app.kubernetes.io/name
  podMetricsEndpoints:
    - port: metrics
      path: /metrics
      interval: {{ .values.podMonitor.interval }}
      relabelings:
        - sourceLabels: [__meta_kubernetes_pod_node_name]
          targetLabel: node
{{- end }}
{{- if .values.alerts.enabled }}
---
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "kube-router-rs.labels" . | nindent 4 }}
    {{- with .values.alerts.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec: {{- fromYaml (.root.Files.Get (printf "files/alerts/%s.yaml" .name)) | toYaml | nindent 2 }}
{{- end }}
{{- if .values.dashboard.enabled }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .name }}-dashboard
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "kube-router-rs.labels" . | nindent 4 }}
    {{- with .values.dashboard.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
data:
  {{ .name }}.json: |
    {{- .root.Files.Get (printf "files/dashboards/%s.json" .name) | nindent 4 }}
{{- end }}
{{- end }}
