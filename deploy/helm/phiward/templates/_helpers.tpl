{{- define "phiward.labels" -}}
app.kubernetes.io/part-of: phiward
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "phiward.collectorIdentity" -}}
{{ .Values.collector.identity | default (printf "spiffe://%s/ns/%s/sa/phiward-collector" .Values.trustDomain .Release.Namespace) }}
{{- end }}

{{/* Pod security "restricted". */}}
{{- define "phiward.podSecurity" -}}
runAsNonRoot: true
runAsUser: 15099
runAsGroup: 15099
fsGroup: 15099
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "phiward.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "phiward.webhookConfig" -}}
version: 1
server: {bind: "0.0.0.0:15443", certificate: /etc/phiward/tls/tls.crt, private_key: /etc/phiward/tls/tls.key}
injection:
  image: {{ .Values.image | quote }}
  trust_domain: {{ .Values.trustDomain }}
  identity: {{ if eq .Values.identity.source "secret" }}secret/{{ .Values.identity.secret }}{{ else }}{{ .Values.identity.source }}{{ end }}
  cpu: {{ .Values.sidecar.cpu | quote }}
  memory: {{ .Values.sidecar.memory | quote }}
  {{- if .Values.collector.enabled }}
  sinks:
    - name: collector
      type: phiward
      endpoint: "https://phiward-collector.{{ .Release.Namespace }}.svc.cluster.local:15200"
      identities: ["{{ include "phiward.collectorIdentity" . }}"]
  {{- end }}
{{- end }}

{{- define "phiward.collectorConfig" -}}
version: 1
identity:
  trust_domain: {{ .Values.trustDomain }}
  {{- if eq .Values.identity.source "spire" }}
  source: spire
  spire: {socket: "unix:///run/phiward/identity/spire-agent.sock"}
  {{- else if eq .Values.identity.source "cert-manager" }}
  files: {certificate: /run/phiward/identity/tls.crt, private_key: /run/phiward/identity/tls.key, bundle: /run/phiward/identity/ca.crt}
  {{- else }}
  files: {certificate: /run/phiward/identity/svid.pem, private_key: /run/phiward/identity/svid.key, bundle: /run/phiward/identity/bundle.pem}
  {{- end }}
bind: "0.0.0.0:15200"
store: {dir: /var/lib/phiward/store}
admin: {bind: "0.0.0.0:15201"}
{{- with .Values.collector.retention }}
retention: {{ toJson . }}
{{- end }}
{{- end }}
