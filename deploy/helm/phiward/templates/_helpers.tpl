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
