{{/* The DaemonSet of a component; see _component.tpl for the dict. */}}
{{- define "kube-router-rs.daemonset" -}}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "kube-router-rs.labels" . | nindent 4 }}
spec:
  selector:
    matchLabels: {{- include "kube-router-rs.selectorLabels" . | nindent 6 }}
  updateStrategy: {{- toYaml .values.updateStrategy | nindent 4 }}
  template:
    metadata: {{- include "kube-router-rs.podMetadata" . | nindent 6 }}
    spec:
      serviceAccountName: {{ .name }}
      automountServiceAccountToken: true
      # The node's own network is what the component programs.
      hostNetwork: true
      # The API server is reached by address; cluster DNS may depend on us.
      dnsPolicy: Default
      priorityClassName: {{ .values.priorityClassName }}
      # Stopping leaves the data plane as it is, so there is nothing to drain.
      terminationGracePeriodSeconds: 10
      {{- include "kube-router-rs.placement" . | nindent 6 }}
      securityContext:
        seccompProfile:
          type: RuntimeDefault
        {{- with .values.seLinuxOptions }}
        seLinuxOptions: {{- toYaml . | nindent 10 }}
        {{- end }}
      containers:
        - {{ include "kube-router-rs.container" . | indent 10 | trim }}
      {{- if or .values.hostSysctl.enabled .podNetns .hostFolders }}
      volumes:
        {{- if .values.hostSysctl.enabled }}
        - name: host-sysctl-net
          hostPath:
            path: /proc/sys/net
            type: Directory
        {{- end }}
        {{- if .podNetns }}
        - name: pod-netns
          hostPath:
            path: /run/netns
            type: DirectoryOrCreate
        {{- end }}
        {{- range $name, $path := .hostFolders }}
        - name: {{ $name }}
          hostPath:
            path: {{ $path }}
            type: DirectoryOrCreate
        {{- end }}
      {{- end }}
{{- end }}

{{- define "kube-router-rs.container" -}}
name: {{ .name }}
image: {{ include "kube-router-rs.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args:
  {{- toYaml .args | nindent 2 }}
  - --cache-sync-timeout={{ .values.cacheSyncTimeout }}
  - --sync-period={{ .values.syncPeriod }}
  - --health-addr=127.0.0.1
  - --health-port={{ .values.health.port }}
  {{- if .values.metrics.enabled }}
  - --metrics-addr=$(HOST_IP)
  - --metrics-port={{ .values.metrics.port }}
  {{- end }}
  {{- include "kube-router-rs.logArgs" . | nindent 2 }}
  {{- if .values.hostSysctl.enabled }}
  - --sysctl-root=/host/proc/sys
  {{- end }}
  {{- if .root.Values.nodeEvents.enabled }}
  - --node-events
  {{- end }}
  {{- with .values.extraArgs }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
env:
  - name: NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  {{- if .values.metrics.enabled }}
  - name: HOST_IP
    valueFrom:
      fieldRef:
        fieldPath: status.hostIP
  {{- end }}
  {{- with include "kube-router-rs.commonEnv" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
ports:
  - name: health
    containerPort: {{ .values.health.port }}
    protocol: TCP
  {{- if .values.metrics.enabled }}
  - name: metrics
    containerPort: {{ .values.metrics.port }}
    protocol: TCP
  {{- end }}
  {{- with .ports }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
# The kubelet probes from the node's network, where 127.0.0.1 is ours too.
livenessProbe:
  httpGet: {host: 127.0.0.1, path: /healthz, port: health}
  initialDelaySeconds: 10
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {host: 127.0.0.1, path: /readyz, port: health}
  periodSeconds: 5
  timeoutSeconds: 5
resources: {{- toYaml .values.resources | nindent 2 }}
{{- $capabilities := list "NET_ADMIN" }}
{{- if .podNetns }}{{ $capabilities = append $capabilities "SYS_ADMIN" }}{{ end }}
{{- if hasKey . "capabilities" }}{{ $capabilities = .capabilities }}{{ end }}
{{- if has "NET_ADMIN" $capabilities }}
# uid 0 because Kubernetes gives added capabilities to no other user (there are
# no ambient capabilities in its API, and no_new_privs rules out file ones).
{{- if .podNetns }}
# NET_ADMIN is for the node's network, SYS_ADMIN to enter the network of a pod.
{{- else }}
# Every capability but NET_ADMIN is dropped.
{{- end }}
{{- else }}
# uid 0 because the folders of the node are root's.
{{- end }}
securityContext:
  runAsUser: 0
  runAsGroup: 0
  privileged: false
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    {{- with $capabilities }}
    add: [{{ join ", " . }}]
    {{- end }}
{{- if or .values.hostSysctl.enabled .podNetns .hostFolders }}
volumeMounts:
  {{- if .values.hostSysctl.enabled }}
  - name: host-sysctl-net
    mountPath: /host/proc/sys/net
  {{- end }}
  {{- if .podNetns }}
  # Namespaces of pods that start later are mounted later.
  - name: pod-netns
    mountPath: /run/netns
    mountPropagation: HostToContainer
    readOnly: true
  {{- end }}
  {{- range $name, $path := .hostFolders }}
  - name: {{ $name }}
    mountPath: {{ $path }}
  {{- end }}
{{- end }}
{{- end }}
