{{/*
The Deployment of a component that runs for the whole cluster, with no privileges
on any node; see _component.tpl for the dict.
*/}}
{{- define "kube-router-rs.deployment" -}}
{{- if .files -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "kube-router-rs.labels" . | nindent 4 }}
data: {{- toYaml .files | nindent 2 }}
---
{{ end -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "kube-router-rs.labels" . | nindent 4 }}
spec:
  replicas: {{ .values.replicas }}
  selector:
    matchLabels: {{- include "kube-router-rs.selectorLabels" . | nindent 6 }}
  strategy: {{- toYaml .values.strategy | nindent 4 }}
  template:
    metadata:
      {{- include "kube-router-rs.podMetadata" . | nindent 6 }}
        {{- if .files }}
        # Files are read at the start only.
        checksum/files: {{ toYaml .files | sha256sum }}
        {{- end }}
    spec:
      serviceAccountName: {{ .name }}
      automountServiceAccountToken: true
      # Where it runs before cluster DNS does, the node's resolver has to do.
      dnsPolicy: Default
      priorityClassName: {{ .values.priorityClassName }}
      # Long enough to end a write and to give the Lease back.
      terminationGracePeriodSeconds: 15
      {{- include "kube-router-rs.placement" . | nindent 6 }}
      {{- if not .values.affinity }}
      affinity:
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              podAffinityTerm:
                topologyKey: kubernetes.io/hostname
                labelSelector:
                  matchLabels: {{- include "kube-router-rs.selectorLabels" . | nindent 20 }}
      {{- end }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        runAsGroup: 65532
        # Of the service account's token.
        fsGroup: 65532
        seccompProfile:
          type: RuntimeDefault
      containers:
        - name: {{ .name }}
          image: {{ include "kube-router-rs.image" . }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args:
            {{- toYaml .args | nindent 12 }}
            - --cache-sync-timeout={{ .values.cacheSyncTimeout }}
            - --sync-period={{ .values.syncPeriod }}
            - --health-port={{ .values.health.port }}
            {{- if .values.metrics.enabled }}
            - --metrics-port={{ .values.metrics.port }}
            {{- end }}
            {{- include "kube-router-rs.logArgs" . | nindent 12 }}
            {{- with .values.extraArgs }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          env:
            - name: POD_NAME
              valueFrom:
                fieldRef:
                  fieldPath: metadata.name
            - name: POD_NAMESPACE
              valueFrom:
                fieldRef:
                  fieldPath: metadata.namespace
            {{- with include "kube-router-rs.commonEnv" . | trim }}
            {{- . | nindent 12 }}
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
          livenessProbe:
            httpGet: {path: /healthz, port: health}
            initialDelaySeconds: 10
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /readyz, port: health}
            periodSeconds: 5
            timeoutSeconds: 5
          resources: {{- toYaml .values.resources | nindent 12 }}
          securityContext:
            privileged: false
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: [ALL]
          {{- if .files }}
          volumeMounts:
            - name: files
              mountPath: /etc/{{ .name }}
              readOnly: true
          {{- end }}
      {{- if .files }}
      volumes:
        - name: files
          configMap:
            name: {{ .name }}
      {{- end }}
{{- end }}
