{{- /* What values.schema.json cannot say: combinations that are unsafe or cannot work. All that are broken are told at once. */ -}}
{{- define "quotesign.rules" -}}
{{- $faults := list -}}
{{- $production := eq .Values.environment "production" -}}
{{- $sqlite := eq .Values.ledger.engine "sqlite" -}}
{{- $several := or .Values.autoscaling.enabled (gt (int .Values.replicas) 1) -}}
{{- if and $sqlite (ne (int .Values.replicas) 1) -}}
{{- $faults = append $faults "replicas: a ledger in SQLite has exactly one gateway; set it to 1, or take PostgreSQL" -}}
{{- end -}}
{{- if and $sqlite .Values.autoscaling.enabled -}}
{{- $faults = append $faults "autoscaling: a ledger in SQLite has exactly one gateway; turn it off, or take PostgreSQL" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- $faults = append $faults "autoscaling.minReplicas is above maxReplicas" -}}
{{- end -}}
{{- if and $production (not .Values.image.digest) -}}
{{- $faults = append $faults "image.digest: production runs one image and no tag that moves; give its sha256" -}}
{{- end -}}
{{- if and (not $sqlite) (eq .Values.ledger.postgres.workload "Deployment") $production -}}
{{- $faults = append $faults "ledger.postgres.workload: production needs an anchor for each gateway, and a Deployment's pods keep no volume and no name; take StatefulSet" -}}
{{- end -}}
{{- if and $production (not .Values.ledger.anchor.enabled) -}}
{{- $faults = append $faults "ledger.anchor.enabled: production needs an anchor, which tells a ledger that has gone back in time" -}}
{{- end -}}
{{- if and (not $sqlite) (include "quotesign.hasAnchor" .) (not .Values.ledger.anchor.adopt) (or .Values.autoscaling.enabled (and .Release.IsInstall (gt (int .Values.replicas) 1))) -}}
{{- $faults = append $faults "ledger.anchor.adopt: the second gateway finds a ledger that is not empty and has no anchor yet; give the reason that is journalled when it makes one" -}}
{{- end -}}
{{- if and $sqlite .Values.ledger.postgres.address -}}
{{- $faults = append $faults "ledger.postgres: the engine is sqlite; leave its address out" -}}
{{- end -}}
{{- if not (or .Values.signers .Values.awsKms) -}}
{{- $faults = append $faults "signers, awsKms: name at least one device that holds keys" -}}
{{- end -}}
{{- $names := list -}}
{{- range concat .Values.signers .Values.awsKms -}}
{{- if has .name $names -}}
{{- $faults = append $faults (printf "signers, awsKms: `%s` stands there twice" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $sources := 0 -}}
{{- range list .Values.policy.files .Values.policy.configMap .Values.policy.volume -}}
{{- if . }}{{ $sources = add1 $sources }}{{ end -}}
{{- end -}}
{{- if ne (int $sources) 1 -}}
{{- $faults = append $faults "policy: give the bundle by one of files, configMap and volume" -}}
{{- end -}}
{{- if and .Values.policy.files .Values.policy.digest (ne .Values.policy.digest (include "quotesign.policyDigest" .)) -}}
{{- $faults = append $faults (printf "policy.digest: the files have the digest %s, and that is not the one that was approved" (include "quotesign.policyDigest" .)) -}}
{{- end -}}
{{- if and $production (not .Values.policy.digest) -}}
{{- $faults = append $faults "policy.digest: production names the bundle that was approved; give what `quotesign policy digest` prints" -}}
{{- end -}}
{{- with .Values.otlp -}}
{{- if and .settings (hasPrefix "https://" (default "" .settings.endpoint)) (not .ca) -}}
{{- $faults = append $faults "otlp.ca: give the CA of the collector's certificate" -}}
{{- end -}}
{{- if and .settings $production (not (hasPrefix "https://" (default "" .settings.endpoint))) -}}
{{- $faults = append $faults "otlp.settings.endpoint: production ships the journal over TLS alone; give an https:// address" -}}
{{- end -}}
{{- if and .settings (not (hasPrefix "https://" (default "" .settings.endpoint))) (or .ca .clientCertificate) -}}
{{- $faults = append $faults "otlp: ca and clientCertificate are for an https:// endpoint" -}}
{{- end -}}
{{- if and (not .settings) (or .ca .clientCertificate .headers) -}}
{{- $faults = append $faults "otlp.settings.endpoint: name the collector" -}}
{{- end -}}
{{- end -}}
{{- range .Values.awsKms -}}
{{- if and (hasPrefix "http://" (default "" .endpoint)) (ne $.Values.environment "development") -}}
{{- $faults = append $faults (printf "awsKms: the endpoint of `%s` is not https://, which is for development alone" .name) -}}
{{- end -}}
{{- end -}}
{{- with .Values.audit.checkpoint -}}
{{- if not (has .signer $names) -}}
{{- $faults = append $faults (printf "audit.checkpoint.signer: `%s` is neither in signers nor in awsKms" .signer) -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if hasPrefix "QUOTESIGN__" .name -}}
{{- $faults = append $faults (printf "extraEnv: `%s` would override what the chart writes; set the value" .name) -}}
{{- end -}}
{{- if and .value (regexMatch "(PIN|PASS|PASSWORD|PASSPHRASE|SECRET|TOKEN|KEY|CREDENTIALS?)$" .name) -}}
{{- $faults = append $faults (printf "extraEnv: `%s` may be a secret, which does not belong in values; take it from a Secret with valueFrom" .name) -}}
{{- end -}}
{{- end -}}
{{- range .Values.signers -}}
{{- range $name, $value := .environment -}}
{{- if regexMatch "(PIN|PASSWORD|PASSPHRASE|SECRET)$" $name -}}
{{- $faults = append $faults (printf "signers: the variable `%s` may be a secret, which does not belong in values" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range .Values.pkcs11.sidecars -}}
{{- if and $production (not (contains "@sha256:" .image)) -}}
{{- $faults = append $faults (printf "pkcs11.sidecars: production runs no tag that moves; give the image of `%s` with its @sha256" .name) -}}
{{- end -}}
{{- range $name, $value := .securityContext -}}
{{- if and $production (or (not (has $name (list "runAsUser" "runAsGroup"))) (eq (toString $value) "0")) -}}
{{- $faults = append $faults (printf "pkcs11.sidecars: production runs no container with privileges, nor with fewer bounds than the gateway; leave out `%s`, but for a user or group above 0" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range .Values.pkcs11.modules -}}
{{- if and $production .image (not (contains "@sha256:" (default "" .image))) -}}
{{- $faults = append $faults (printf "pkcs11.modules: the module is loaded by the process that holds the PIN; give the image of `%s` with its @sha256" .name) -}}
{{- end -}}
{{- end -}}
{{- range .Values.pkcs11.modules -}}
{{- if and $production (hasKey (default dict .volume) "hostPath") -}}
{{- $faults = append $faults (printf "pkcs11.modules: the module `%s` would come from a path of the node, and is loaded by the process that holds the PIN; take another kind of volume in production" .name) -}}
{{- end -}}
{{- end -}}
{{- if and $production (hasKey (default dict (default dict .Values.policy.volume).source) "hostPath") -}}
{{- $faults = append $faults "policy.volume.source: the bundle would come from a path of the node; take another kind of volume in production" -}}
{{- end -}}
{{- range .Values.extraVolumes -}}
{{- if and $production .hostPath -}}
{{- $faults = append $faults (printf "extraVolumes: `%s` is a path of the node, which any pod of it may write; take another kind of volume in production" .name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.terminationGracePeriodSeconds (lt (int .Values.terminationGracePeriodSeconds) (int (include "quotesign.drainSeconds" .))) -}}
{{- $faults = append $faults (printf "terminationGracePeriodSeconds: the gateway needs %s to drain, by drain.grace_ms, drain.timeout_ms and limits.deadline_ms_max" (include "quotesign.drainSeconds" .)) -}}
{{- end -}}
{{- if and .Values.jwks.ingress.enabled .Values.jwks.gateway.enabled -}}
{{- $faults = append $faults "jwks: take ingress or gateway, one of them" -}}
{{- end -}}
{{- if and .Values.jwks.ingress.enabled (not .Values.jwks.ingress.hosts) -}}
{{- $faults = append $faults "jwks.ingress.hosts: name the host of the key sets" -}}
{{- end -}}
{{- with .Values.jwks.gateway -}}
{{- if and .enabled (not .parentRefs) -}}
{{- $faults = append $faults "jwks.gateway.parentRefs: name the Gateway" -}}
{{- end -}}
{{- if and .enabled (eq .kind "HTTPRoute") (not .backendTLS) -}}
{{- $faults = append $faults "jwks.gateway.backendTLS: the gateway speaks TLS alone; say by which name and CA its certificate is checked, or take a TLSRoute" -}}
{{- end -}}
{{- if and .enabled (eq .kind "TLSRoute") (or .backendTLS (not .hostnames)) -}}
{{- $faults = append $faults "jwks.gateway: a TLSRoute passes TLS on unread by its hostnames; give them, and no backendTLS" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tests.client (not .Values.tests.ca) -}}
{{- $faults = append $faults "tests.ca: the test of health needs the CA of the gateway's certificate" -}}
{{- end -}}
{{- if and .Values.tests.ca (not .Values.tests.partner) (not .Values.tests.jwksUrl) -}}
{{- $faults = append $faults "tests.partner: say whose key set is looked at" -}}
{{- end -}}
{{- if and .Values.tests.ca (not .Values.tests.jwksUrl) (not .Values.tests.jwksCA) (ne .Values.jwks.tls.secretName .Values.grpc.tls.secretName) -}}
{{- $faults = append $faults "tests.jwksUrl: the key sets have a certificate of their own; give the URL that verifiers fetch, or tests.jwksCA where that certificate has the Service's name" -}}
{{- end -}}
{{- if and $production $several (not $sqlite) (not .Values.podDisruptionBudget.enabled) -}}
{{- $faults = append $faults "podDisruptionBudget.enabled: production with several gateways keeps one when nodes are drained" -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "these values cannot be used:\n- %s" (join "\n- " $faults)) -}}
{{- end -}}
{{- end -}}
