{{- /* What is mounted from Secrets and ConfigMaps, a directory each, since the kubelet renews directories and never a single file
(subPath): the gateway takes a renewed certificate over by itself. `for` is who needs it: the ledger's own are the migration's too. */ -}}
{{- define "quotesign.files" -}}
{{- $files := list -}}
{{- range $name := list "grpc" "admin" "jwks" -}}
{{- $given := index $.Values $name -}}
{{- $files = append $files (dict "name" (printf "tls-%s" $name) "path" (printf "tls/%s" $name) "reference" $given.tls "for" "gateway") -}}
{{- with $given.clientCA -}}
{{- $files = append $files (dict "name" (printf "ca-%s" $name) "path" (printf "ca/%s" $name) "reference" . "key" "ca.crt" "for" "gateway") -}}
{{- end -}}
{{- end -}}
{{- with .Values.jwks.urlCA -}}
{{- $files = append $files (dict "name" "ca-urls" "path" "ca/urls" "reference" . "key" "ca.crt" "for" "gateway") -}}
{{- end -}}
{{- if eq .Values.ledger.engine "postgres" -}}
{{- with .Values.ledger.postgres.ca -}}
{{- $files = append $files (dict "name" "ca-postgres" "path" "ca/postgres" "reference" . "key" "ca.crt" "for" "ledger") -}}
{{- end -}}
{{- with .Values.ledger.postgres.password -}}
{{- $files = append $files (dict "name" "postgres" "path" "secrets/postgres" "reference" . "key" "password" "for" "ledger") -}}
{{- end -}}
{{- with .Values.ledger.postgres.clientCertificate -}}
{{- $files = append $files (dict "name" "tls-postgres" "path" "tls/postgres" "reference" . "for" "ledger") -}}
{{- end -}}
{{- end -}}
{{- range .Values.signers -}}
{{- $files = append $files (dict "name" (printf "pin-%s" .name) "path" (printf "secrets/pin-%s" .name) "reference" .pin "key" "pin" "for" "gateway") -}}
{{- end -}}
{{- with .Values.audit.referenceKey -}}
{{- $files = append $files (dict "name" "reference-key" "path" "secrets/reference-key" "reference" . "key" "key" "for" "gateway") -}}
{{- end -}}
{{- with .Values.otlp.ca -}}
{{- $files = append $files (dict "name" "ca-otlp" "path" "ca/otlp" "reference" . "key" "ca.crt" "for" "gateway") -}}
{{- end -}}
{{- with .Values.otlp.clientCertificate -}}
{{- $files = append $files (dict "name" "tls-otlp" "path" "tls/otlp" "reference" . "for" "gateway") -}}
{{- end -}}
{{- with .Values.otlp.headers -}}
{{- $files = append $files (dict "name" "otlp-headers" "path" "secrets/otlp-headers" "reference" . "key" "headers" "for" "gateway") -}}
{{- end -}}
{{- toYaml $files -}}
{{- end -}}

{{- /* One volume of such a reference. Of a reference with a key nothing else comes into the pod. */ -}}
{{- define "quotesign.fileVolume" -}}
- name: {{ .name }}
  {{- if .reference.configMapName }}
  configMap:
    name: {{ .reference.configMapName }}
  {{- else }}
  secret:
    secretName: {{ .reference.secretName }}
    defaultMode: 0440
  {{- end }}
    {{- if .key }}
    items:
      - key: {{ default .key .reference.key }}
        path: {{ default .key .reference.key }}
    {{- else }}
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
    {{- end }}
{{- end -}}

{{- define "quotesign.fileMount" -}}
- name: {{ .name }}
  mountPath: /etc/quotesign/{{ .path }}
  readOnly: true
{{- end -}}

{{- define "quotesign.ledgerMounts" -}}
{{- if eq .Values.ledger.engine "sqlite" }}
- name: ledger
  mountPath: /var/lib/quotesign/ledger
{{- end }}
{{- if include "quotesign.hasAnchor" . }}
- name: anchor
  mountPath: /var/lib/quotesign/anchor
{{- end }}
{{- end -}}

{{- /* What a command of the ledger needs: the config, and what the ledger's server asks for. */ -}}
{{- define "quotesign.ledgerCommandMounts" -}}
- name: config
  mountPath: /etc/quotesign/config
  readOnly: true
{{- range include "quotesign.files" . | fromYamlArray }}
{{- if eq .for "ledger" }}
{{ include "quotesign.fileMount" . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "quotesign.ledgerCommandResources" -}}
requests:
  cpu: 50m
  memory: 64Mi
limits:
  memory: 256Mi
{{- end -}}

{{- define "quotesign.initContainers" -}}
{{- $context := include "quotesign.securityContext" . | fromYaml -}}
{{- range .Values.pkcs11.modules }}
{{- if .image }}
- name: module-{{ .name }}
  image: {{ .image }}
  imagePullPolicy: {{ $.Values.image.pullPolicy }}
  command: {{- toYaml .command | nindent 4 }}
  securityContext: {{- toYaml $context | nindent 4 }}
  resources: {{- include "quotesign.ledgerCommandResources" $ | nindent 4 }}
  volumeMounts:
    - name: module-{{ .name }}
      mountPath: {{ .mountPath }}
{{- end }}
{{- end }}
{{- /* With `restartPolicy: Always` they begin before the gateway and end after it. */ -}}
{{- range .Values.pkcs11.sidecars }}
{{- $given := deepCopy . }}
{{- $_ := set $given "securityContext" (mergeOverwrite (deepCopy $context) (default dict $given.securityContext)) }}
{{- $_ := set $given "restartPolicy" "Always" }}
- {{- toYaml $given | nindent 2 }}
{{- end }}
{{- if and (eq .Values.ledger.engine "sqlite") .Values.migration.enabled }}
- name: migrate
  image: {{ include "quotesign.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [ledger, migrate, --config, /etc/quotesign/config/quotesign.toml]
  # Indexes are sorted there: it may be as much as the quotes themselves, and the rest is read-only.
  env:
    - name: SQLITE_TMPDIR
      value: /var/lib/quotesign/ledger
  securityContext: {{- toYaml $context | nindent 4 }}
  resources: {{- include "quotesign.ledgerCommandResources" . | nindent 4 }}
  volumeMounts:
    {{- include "quotesign.ledgerCommandMounts" . | nindent 4 }}
    {{- include "quotesign.ledgerMounts" . | trim | nindent 4 }}
{{- end }}
{{- if and (include "quotesign.hasAnchor" .) .Values.ledger.anchor.adopt }}
- name: adopt-anchor
  image: {{ include "quotesign.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [ledger, anchor, adopt, --if-missing, --reason, {{ .Values.ledger.anchor.adopt | quote }}, --config, /etc/quotesign/config/quotesign.toml]
  securityContext: {{- toYaml $context | nindent 4 }}
  resources: {{- include "quotesign.ledgerCommandResources" . | nindent 4 }}
  volumeMounts:
    {{- include "quotesign.ledgerCommandMounts" . | nindent 4 }}
    {{- include "quotesign.ledgerMounts" . | trim | nindent 4 }}
{{- end }}
{{- end -}}

{{- define "quotesign.volumes" -}}
- name: config
  configMap:
    name: {{ include "quotesign.fullname" . }}
- name: policy
{{- with .Values.policy }}
{{- if .files }}
  configMap:
    name: {{ include "quotesign.fullname" $ }}-policy
    items:
    {{- range $path, $text := .files }}
      - key: {{ $path | replace "/" "__" }}
        path: {{ $path }}
    {{- end }}
      - key: bundle.digest
        path: bundle.digest
{{- else if .configMap }}
  configMap:
    name: {{ .configMap.name }}
    items: {{- toYaml .configMap.items | nindent 6 }}
{{- else }}
  {{- toYaml .volume.source | nindent 2 }}
{{- end }}
{{- end }}
{{- range include "quotesign.files" . | fromYamlArray }}
{{ include "quotesign.fileVolume" . }}
{{- end }}
- name: tmp
  emptyDir:
    medium: Memory
    sizeLimit: 64Mi
{{- range .Values.pkcs11.modules }}
- name: module-{{ .name }}
{{- if .image }}
  emptyDir: {}
{{- else }}
  {{- toYaml .volume | nindent 2 }}
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "quotesign.pod" -}}
metadata:
  labels:
    {{- include "quotesign.selector" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # The config is read at the start: whoever changes it has the pods exchanged, one after another.
    checksum/config: {{ include "quotesign.configData" . | sha256sum }}
    kubectl.kubernetes.io/default-container: quotesign
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "quotesign.serviceAccount" . }}
  # It does not talk to Kubernetes. The token of a web identity is a volume of its own.
  automountServiceAccountToken: false
  # Service links would be variables, as QUOTESIGN_PORT, that are of no use to it.
  enableServiceLinks: false
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext: {{- include "quotesign.podSecurityContext" . | nindent 4 }}
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds | default (include "quotesign.drainSeconds" . | int) }}
  {{- with include "quotesign.initContainers" . | trim }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: quotesign
      image: {{ include "quotesign.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [serve, --config, /etc/quotesign/config/quotesign.toml]
      env:
        - name: QUOTESIGN_CONFIG
          value: /etc/quotesign/config/quotesign.toml
        {{- if .Values.serviceAccount.awsRoleArn }}
        # The web identity is its only one: without it, no instance is to be asked for another.
        - name: AWS_EC2_METADATA_DISABLED
          value: "true"
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - { name: grpc, containerPort: 8443 }
        - { name: admin, containerPort: 8444 }
        - { name: jwks, containerPort: 8445 }
        - { name: operations, containerPort: 9464 }
      startupProbe:
        httpGet: { path: /livez, port: operations }
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 60
      livenessProbe:
        httpGet: { path: /livez, port: operations }
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: { path: "/readyz?for={{ .Values.readiness }}", port: operations }
        periodSeconds: 2
        timeoutSeconds: 2
        failureThreshold: 2
      securityContext: {{- include "quotesign.securityContext" . | nindent 8 }}
      resources: {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - name: config
          mountPath: /etc/quotesign/config
          readOnly: true
        - name: policy
          mountPath: /etc/quotesign/policy
          readOnly: true
        {{- range include "quotesign.files" . | fromYamlArray }}
        {{- include "quotesign.fileMount" . | nindent 8 }}
        {{- end }}
        {{- include "quotesign.ledgerMounts" . | trim | nindent 8 }}
        - name: tmp
          mountPath: /tmp
        {{- range .Values.pkcs11.modules }}
        - name: module-{{ .name }}
          mountPath: {{ .mountPath }}
          readOnly: true
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- include "quotesign.volumes" . | nindent 4 }}
  topologySpreadConstraints:
    {{- if .Values.topologySpreadConstraints }}
    {{- toYaml .Values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: topology.kubernetes.io/zone
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "quotesign.selector" . | nindent 10 }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels: {{- include "quotesign.selector" . | nindent 10 }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
