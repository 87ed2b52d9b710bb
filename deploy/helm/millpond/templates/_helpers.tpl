{{- define "millpond.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "millpond.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "millpond.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "millpond.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "millpond.selectorLabels" -}}
app.kubernetes.io/name: {{ include "millpond.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "millpond.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "millpond.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "millpond.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "millpond.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "millpond.keysSecret" -}}
{{- if .Values.apiKeys.existingSecret }}
{{- .Values.apiKeys.existingSecret }}
{{- else if .Values.apiKeys.keys }}
{{- include "millpond.fullname" . }}
{{- end }}
{{- end }}

{{/* The models, then a name for each where one has a name of its own. */}}
{{- define "millpond.modelArgs" -}}
{{- $named := false }}
{{- range .Values.models }}
{{- if .servedName }}{{ $named = true }}{{ end }}
- {{ .name | quote }}
{{- end }}
{{- if $named }}
{{- range .Values.models }}
- --served-model-name={{ default .name .servedName }}
{{- end }}
{{- end }}
{{- end }}
