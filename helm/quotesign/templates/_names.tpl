{{- define "quotesign.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* A pod's name is this and a number, and names the replica at the ledger: at most 63 characters with room for what is put behind it. */ -}}
{{- define "quotesign.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "quotesign.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "quotesign.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "quotesign.selector" -}}
app.kubernetes.io/name: {{ include "quotesign.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- /* The pod of `helm test`, which no Service sends anything. */ -}}
{{- define "quotesign.testLabels" -}}
app.kubernetes.io/name: {{ include "quotesign.name" . }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "quotesign.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "quotesign.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "quotesign.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "quotesign.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "quotesign.image" -}}
{{- with .Values.image -}}
{{- .repository -}}
{{- if .tag }}:{{ .tag }}{{ else if not .digest }}:{{ $.Chart.AppVersion }}{{ end -}}
{{- if .digest }}@{{ .digest }}{{ end -}}
{{- end -}}
{{- end -}}

{{- /* A ledger in a file is a gateway's own, and an anchor is its gateway's own: both want pods that keep their names and volumes. */ -}}
{{- define "quotesign.workload" -}}
{{- if eq .Values.ledger.engine "sqlite" }}StatefulSet{{ else }}{{ .Values.ledger.postgres.workload }}{{ end -}}
{{- end -}}

{{- define "quotesign.hasAnchor" -}}
{{- if and .Values.ledger.anchor.enabled (eq (include "quotesign.workload" .) "StatefulSet") }}yes{{ end -}}
{{- end -}}

{{- /* What a pod needs to drain, in seconds: signatures that were begun are finished within a call's longest time; the last checkpoint may
take ten, what is left to send six, and key sets, ledger and tokens the rest. */ -}}
{{- define "quotesign.drainSeconds" -}}
{{- $sum := add (int64 (default 2000 .Values.drain.grace_ms)) (int64 (default 20000 .Values.drain.timeout_ms)) (int64 (default 10000 .Values.limits.deadline_ms_max)) -}}
{{- add (ceil (divf $sum 1000)) 20 -}}
{{- end -}}

{{- define "quotesign.securityContext" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "quotesign.podSecurityContext" -}}
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
runAsGroup: 65532
runAsNonRoot: true
runAsUser: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}
