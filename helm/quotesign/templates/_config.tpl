{{- /* A value as TOML. Helm reads whole numbers as floats, which TOML tells apart. */ -}}
{{- define "quotesign.toml.value" -}}
{{- if kindIs "string" . -}}
{{- toRawJson . -}}
{{- else if kindIs "bool" . -}}
{{- . -}}
{{- else if kindIs "slice" . -}}
[{{- range $at, $item := . }}{{ if $at }}, {{ end }}{{ include "quotesign.toml.value" $item }}{{ end -}}]
{{- else if kindIs "map" . -}}
{ {{- $first := true }}{{ range $name, $item := . }}{{ if not $first }},{{ end }} {{ toRawJson $name }} = {{ include "quotesign.toml.value" $item }}{{ $first = false }}{{ end }} }
{{- else if eq (floor .) (float64 .) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{- define "quotesign.toml.fields" -}}
{{- range $name, $value := . }}
{{ $name }} = {{ include "quotesign.toml.value" $value }}
{{- end }}
{{- end -}}

{{- define "quotesign.toml.section" -}}
{{- if .fields }}

[{{ .name }}]
{{- include "quotesign.toml.fields" .fields }}
{{- end }}
{{- end -}}

{{- /* The key of a reference to a file in a Secret or a ConfigMap. */ -}}
{{- define "quotesign.keyOf" -}}
{{- default .fallback .reference.key -}}
{{- end -}}

{{- define "quotesign.toml.mutual" -}}
{{- $given := index .Values .name }}

[{{ .name }}]
listen = {{ printf "%s:%d" .address .port | quote }}
certificate = "/etc/quotesign/tls/{{ .name }}/tls.crt"
private_key = "/etc/quotesign/tls/{{ .name }}/tls.key"
client_ca = "/etc/quotesign/ca/{{ .name }}/{{ include "quotesign.keyOf" (dict "reference" $given.clientCA "fallback" "ca.crt") }}"
{{- include "quotesign.toml.fields" $given.settings }}
{{- end -}}

{{- /* quotesign.toml. Its paths are those that quotesign.files mounts. */ -}}
{{- define "quotesign.config" -}}
{{- $address := ternary (printf "[%s]" .Values.listenAddress) .Values.listenAddress (contains ":" .Values.listenAddress) -}}
environment = {{ .Values.environment | quote }}
policy = "/etc/quotesign/policy{{ with .Values.policy.volume }}{{ with .path }}/{{ . }}{{ end }}{{ end }}"
{{- if .Values.policy.key }}
policy_key = "/etc/quotesign/config/policy-key.jwk.json"
{{- end }}
{{- include "quotesign.toml.mutual" (dict "Values" .Values "name" "grpc" "address" $address "port" 8443) }}
{{- include "quotesign.toml.mutual" (dict "Values" .Values "name" "admin" "address" $address "port" 8444) }}

[jwks]
listen = {{ printf "%s:8445" $address | quote }}
certificate = "/etc/quotesign/tls/jwks/tls.crt"
private_key = "/etc/quotesign/tls/jwks/tls.key"
{{- with .Values.jwks.urlCA }}
url_ca = "/etc/quotesign/ca/urls/{{ include "quotesign.keyOf" (dict "reference" . "fallback" "ca.crt") }}"
{{- end }}
{{- include "quotesign.toml.fields" .Values.jwks.settings }}

[operations]
listen = {{ printf "%s:9464" $address | quote }}

[ledger]
{{- if eq .Values.ledger.engine "sqlite" }}
sqlite = "/var/lib/quotesign/ledger/ledger.sqlite"
{{- end }}
{{- if include "quotesign.hasAnchor" . }}
anchor = "/var/lib/quotesign/anchor/ledger.anchor"
{{- end }}
{{- include "quotesign.toml.fields" .Values.ledger.settings }}
{{- if eq .Values.ledger.engine "postgres" }}
{{- with .Values.ledger.postgres }}

[ledger.postgres]
address = {{ .address | quote }}
{{- with .ca }}
ca = "/etc/quotesign/ca/postgres/{{ include "quotesign.keyOf" (dict "reference" . "fallback" "ca.crt") }}"
{{- end }}
{{- with .password }}
password_file = "/etc/quotesign/secrets/postgres/{{ include "quotesign.keyOf" (dict "reference" . "fallback" "password") }}"
{{- end }}
{{- with .clientCertificate }}
certificate = "/etc/quotesign/tls/postgres/tls.crt"
private_key = "/etc/quotesign/tls/postgres/tls.key"
{{- end }}
{{- include "quotesign.toml.fields" .settings }}
{{- end }}
{{- end }}
{{- range .Values.signers }}

[[signers]]
pin_file = "/etc/quotesign/secrets/pin-{{ .name }}/{{ include "quotesign.keyOf" (dict "reference" .pin "fallback" "pin") }}"
{{- include "quotesign.toml.fields" (omit . "pin") }}
{{- end }}
{{- range .Values.awsKms }}

[[aws_kms]]
{{- include "quotesign.toml.fields" . }}
{{- end }}
{{- range $name := list "limits" "clock" "drain" "log" }}
{{- include "quotesign.toml.section" (dict "name" $name "fields" (index $.Values $name)) }}
{{- end }}
{{- with .Values.audit }}
{{- if or .referenceKey .settings }}

[audit]
{{- with .referenceKey }}
reference_key = "/etc/quotesign/secrets/reference-key/{{ include "quotesign.keyOf" (dict "reference" . "fallback" "key") }}"
{{- end }}
{{- include "quotesign.toml.fields" .settings }}
{{- end }}
{{- with .checkpoint }}

[audit.checkpoint]
public_key = "/etc/quotesign/config/checkpoint.jwk.json"
{{- with .earlierKeys }}
earlier_keys = [{{ range $at, $key := . }}{{ if $at }}, {{ end }}"/etc/quotesign/config/checkpoint-earlier-{{ $at }}.jwk.json"{{ end }}]
{{- end }}
{{- include "quotesign.toml.fields" (omit . "publicKey" "earlierKeys") }}
{{- end }}
{{- end }}
{{- with .Values.otlp }}
{{- if .settings }}

[otlp]
{{- with .ca }}
ca = "/etc/quotesign/ca/otlp/{{ include "quotesign.keyOf" (dict "reference" . "fallback" "ca.crt") }}"
{{- end }}
{{- with .clientCertificate }}
certificate = "/etc/quotesign/tls/otlp/tls.crt"
private_key = "/etc/quotesign/tls/otlp/tls.key"
{{- end }}
{{- with .headers }}
headers_file = "/etc/quotesign/secrets/otlp-headers/{{ include "quotesign.keyOf" (dict "reference" . "fallback" "headers") }}"
{{- end }}
{{- include "quotesign.toml.fields" .settings }}
{{- end }}
{{- end }}
{{ end -}}

{{- /* The files of the ConfigMap: the config and public keys. */ -}}
{{- define "quotesign.configData" -}}
quotesign.toml: |
  {{- include "quotesign.config" . | trimSuffix "\n" | nindent 2 }}
{{- with .Values.policy.key }}
policy-key.jwk.json: {{ . | quote }}
{{- end }}
{{- with .Values.audit.checkpoint }}
checkpoint.jwk.json: {{ .publicKey | quote }}
{{- range $at, $key := .earlierKeys }}
checkpoint-earlier-{{ $at }}.jwk.json: {{ $key | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The digest of a bundle whose files are values, as `quotesign policy digest` tells it. */ -}}
{{- define "quotesign.policyDigest" -}}
{{- if .Values.policy.files -}}
{{- $manifest := "" -}}
{{- range $path, $text := .Values.policy.files -}}
{{- if or (has $path (list "policy.toml" "authorize.cedar" "quotesign.cedarschema" "currencies.csv")) (hasPrefix "keys/" $path) (hasPrefix "schemas/" $path) -}}
{{- $manifest = printf "%s%s  %s\n" $manifest (sha256sum $text) $path -}}
{{- end -}}
{{- end -}}
{{- sha256sum $manifest -}}
{{- else -}}
{{- .Values.policy.digest -}}
{{- end -}}
{{- end -}}
