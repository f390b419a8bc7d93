{{- define "creditledger.labels" -}}
app.kubernetes.io/name: creditledger
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* What the containers share; `database`: whether this one gets the URL with its password. */}}
{{- define "creditledger.container" -}}
{{- $database := .database }}
{{- with .root -}}
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  {{- if $database }}
  - name: CREDITLEDGER_DATABASE_URL
    valueFrom:
      secretKeyRef:
        name: {{ .Values.database.secret }}
        key: {{ .Values.database.key }}
  {{- end }}
  # The containers of a pod share its loopback.
  - name: CREDITLEDGER_GRPC_ADDRESS
    value: 127.0.0.1:50051
  - name: CREDITLEDGER_HTTP_ADDRESS
    value: 0.0.0.0:8080
  - name: CREDITLEDGER_METRICS_ADDRESS
    value: 0.0.0.0:{{ .Values.metrics.port }}
  - name: CREDITLEDGER_ALLOW_INSECURE_BIND
    value: "true"
  - name: CREDITLEDGER_DRAIN_SECONDS
    value: {{ .Values.drainSeconds | quote }}
  {{- range $name, $value := .Values.settings }}
  - name: {{ $name }}
    value: {{ $value | quote }}
  {{- end }}
volumeMounts:
  - name: tmp
    mountPath: /tmp
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}
{{- end }}
