{{/* What the pods of DaemonSets and Deployments have in common; see _component.tpl for the dict. */}}

{{- define "kube-router-rs.podMetadata" -}}
labels:
  {{- include "kube-router-rs.selectorLabels" . | nindent 2 }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  kubectl.kubernetes.io/default-container: {{ .name }}
  {{- with .values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "kube-router-rs.placement" -}}
{{- with .root.Values.image.pullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{ end -}}
nodeSelector: {{- toYaml .values.nodeSelector | nindent 2 }}
tolerations: {{- toYaml .values.tolerations | nindent 2 }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Environment of every container, after its own. */}}
{{- define "kube-router-rs.commonEnv" -}}
{{- with .root.Values.apiServer.host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ required "apiServer.port is needed with apiServer.host" $.root.Values.apiServer.port | quote }}
{{- end }}
{{- with .values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "kube-router-rs.logArgs" -}}
- --log-format={{ .values.logFormat }}
{{- with .values.verbosity }}
- -v={{ . }}
{{- end }}
{{- end }}
