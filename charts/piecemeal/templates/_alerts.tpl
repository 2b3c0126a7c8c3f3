{{/*
The alerts. They compare shares rather than counts, so that they hold for three nodes and for three thousand, and need a minimum volume,
so that one failed pull at night raises no alert. Each has its runbook under its own name.
*/}}
{{- define "piecemeal.alerts" -}}
- name: piecemeal-site
  rules:
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealPeerDown" "for" "10m" "severity" "warning"
        "expr" "(1 - avg by (pool) (up{piecemeal_component=\"peer\"})) > 0.1"
        "summary" "{{ $value | humanizePercentage }} of the peers of pool {{ $labels.pool }} do not answer"
        "description" "Their nodes pull from the registry itself, over the WAN.") | nindent 4 }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealMirrorDown" "for" "5m" "severity" "critical"
        "expr" (include "piecemeal.gone" "mirror")
        "summary" "The mirror of pool {{ $labels.pool }} does not answer"
        "description" "The site serves its cached content; new content comes over the WAN, once for each node or blob.") | nindent 4 }}
    {{- if include "piecemeal.scheduler.on" . }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealSchedulerUnreachable" "for" "10m" "severity" "warning"
        "expr" (print (include "piecemeal.gone" "scheduler") "\nor sum by (pool) (piecemeal_scheduler_sessions{role=\"peer\"}) / count by (pool) (up{piecemeal_component=\"peer\"} == 1) < 0.8")
        "summary" "Peers of pool {{ $labels.pool }} have no session with their scheduler"
        "description" "They take every piece from the mirror, whose network card then carries the whole load.") | nindent 4 }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealPlacementRestarted" "for" "0m" "severity" "warning"
        "expr" "increase(piecemeal_scheduler_brain_restarts_total[1h]) > 0"
        "summary" "Placement of pool {{ $labels.pool }} failed and restarted"
        "description" "This is a defect of Piecemeal; pulls were not interrupted.") | nindent 4 }}
    {{- end }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealOriginFallback" "for" "15m" "severity" "warning"
        "expr" "sum by (pool) (rate(piecemeal_blob_bytes_total{piecemeal_component=\"peer\",from=\"upstream\",to=\"store\"}[15m]))\n/ sum by (pool) (rate(piecemeal_blob_bytes_total{piecemeal_component=\"peer\",to=\"store\"}[15m])) > 0.2\nand sum by (pool) (increase(piecemeal_blob_bytes_total{piecemeal_component=\"peer\",to=\"store\"}[15m])) > 100e6"
        "summary" "{{ $value | humanizePercentage }} of what peers of pool {{ $labels.pool }} fetch comes from the registry itself"
        "description" "Their mirror is unreachable.") | nindent 4 }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealCacheDiskPressure" "for" "15m" "severity" "warning"
        "expr" "sum by (pool, piecemeal_component) (rate(piecemeal_transfers_total{outcome=\"passed\"}[30m]))\n/ sum by (pool, piecemeal_component) (rate(piecemeal_transfers_total[30m])) > 0.1\nand sum by (pool, piecemeal_component) (increase(piecemeal_transfers_total[30m])) > 20"
        "summary" "{{ $value | humanizePercentage }} of the blobs that a {{ $labels.piecemeal_component }} of pool {{ $labels.pool }} downloads do not fit into its cache"
        "description" "They will cross the network again.") | nindent 4 }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealDamagedBlobs" "for" "0m" "severity" "warning"
        "expr" "increase(piecemeal_damaged_blobs_total[1d]) > 0"
        "summary" "Content was damaged on the disk of {{ $labels.node }}"
        "description" "It was found and deleted. The disk, the memory or a cable is faulty.") | nindent 4 }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealUpstreamAuthFailures" "for" "15m" "severity" "warning"
        "expr" "sum by (pool, upstream) (rate(piecemeal_upstream_answers_total{piecemeal_component=\"mirror\",answer=\"denied\"}[30m]))\n/ sum by (pool, upstream) (rate(piecemeal_upstream_answers_total{piecemeal_component=\"mirror\"}[30m])) > 0.6\nand sum by (pool, upstream) (increase(piecemeal_upstream_answers_total{piecemeal_component=\"mirror\"}[30m])) > 20"
        "summary" "{{ $labels.upstream }} refuses {{ $value | humanizePercentage }} of what pool {{ $labels.pool }} asks for"
        "description" "Every private pull is asked for once without credentials, which is half; more are wrong or missing ones.") | nindent 4 }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealUpstreamUnreachable" "for" "15m" "severity" "warning"
        "expr" "sum by (pool, upstream) (rate(piecemeal_upstream_answers_total{piecemeal_component=\"mirror\",answer=~\"unreachable|unavailable\"}[15m]))\n/ sum by (pool, upstream) (rate(piecemeal_upstream_answers_total{piecemeal_component=\"mirror\"}[15m])) > 0.5\nand sum by (pool, upstream) (increase(piecemeal_upstream_answers_total{piecemeal_component=\"mirror\"}[15m])) > 10"
        "summary" "{{ $labels.upstream }} does not answer pool {{ $labels.pool }}"
        "description" "The site still serves its cached content.") | nindent 4 }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealUpstreamLimits" "for" "15m" "severity" "warning"
        "expr" "sum by (pool, upstream) (rate(piecemeal_upstream_answers_total{piecemeal_component=\"mirror\",answer=\"too_many_requests\"}[30m]))\n/ sum by (pool, upstream) (rate(piecemeal_upstream_answers_total{piecemeal_component=\"mirror\"}[30m])) > 0.1\nand sum by (pool, upstream) (increase(piecemeal_upstream_answers_total{piecemeal_component=\"mirror\"}[30m])) > 10"
        "summary" "{{ $labels.upstream }} limits pool {{ $labels.pool }}"
        "description" "New images wait for it.") | nindent 4 }}
    {{- $limit := include "piecemeal.bytes" .Values.p2p.ratelimit }}
    {{- if ne $limit "0" }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealRateLimitSaturated" "for" "30m" "severity" "info"
        "expr" (printf "sum by (pool, node) (rate(piecemeal_blob_bytes_total{piecemeal_component=\"peer\",to=\"store\"}[10m]))\n+ sum by (pool, node) (rate(piecemeal_blob_bytes_total{piecemeal_component=\"peer\",to=\"node\"}[10m])) > 0.9 * %s" $limit)
        "summary" "The peer of {{ $labels.node }} has used p2p.ratelimit for half an hour"
        "description" "Pulls on it are slower than its network.") | nindent 4 }}
    {{- end }}
{{- if include "piecemeal.node.on" . }}
- name: piecemeal-nodes
  rules:
    {{- /* Which nodes node set-up takes for a peer's goes by the pools, which peer.nodeSelector narrows. */}}
    {{- if not .Values.peer.nodeSelector }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealPeerMissing" "for" "15m" "severity" "warning"
        "expr" "count(up{piecemeal_component=\"node\",has_peer=\"present\"} == 1 unless on (node) up{piecemeal_component=\"peer\"})\n/ count(up{piecemeal_component=\"node\",has_peer=\"present\"} == 1) > 0.1"
        "summary" "{{ $value | humanizePercentage }} of the nodes that are to have a peer have none"
        "description" "It was not scheduled, or was deleted. Those nodes pull from the registry itself, over the WAN.") | nindent 4 }}
    {{- end }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealRuntimeNotReady" "for" "15m" "severity" "warning"
        "expr" "min by (node, runtime) (piecemeal_node_runtime_ready) == 0"
        "summary" "{{ $labels.runtime }} of {{ $labels.node }} does not read the files of node set-up"
        "description" "Accelerated images cannot be pulled there, since their names are in no DNS.") | nindent 4 }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealNodeSetupFails" "for" "15m" "severity" "warning"
        "expr" "increase(piecemeal_node_errors_total[15m]) > 5"
        "summary" "Node set-up cannot write its files on {{ $labels.node }}"
        "description" "Accelerated images may not be pulled there.") | nindent 4 }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealNodeFilesContested" "for" "15m" "severity" "warning"
        "expr" "increase(piecemeal_node_repairs_total[15m]) > 10"
        "summary" "Another program keeps changing the files of node set-up on {{ $labels.node }}"
        "description" "Node set-up restores them each time.") | nindent 4 }}
{{- end }}
{{- if include "piecemeal.webhook.on" . }}
- name: piecemeal-webhook
  rules:
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealWebhookDown" "for" "5m" "severity" "warning"
        "expr" "max(up{piecemeal_component=\"webhook\"}) == 0 or absent(up{piecemeal_component=\"webhook\"})"
        "summary" "No webhook answers"
        "description" "Pods start all the same, and pull from the registry itself.") | nindent 4 }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealWebhookErrors" "for" "10m" "severity" "warning"
        "expr" "sum(rate(piecemeal_webhook_reviews_total{result=\"failed\"}[10m])) / sum(rate(piecemeal_webhook_reviews_total[10m])) > 0.05\nand sum(increase(piecemeal_webhook_reviews_total[10m])) > 20"
        "summary" "The webhook fails at {{ $value | humanizePercentage }} of pods"
        "description" "Those start unaccelerated.") | nindent 4 }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealWebhookSlow" "for" "10m" "severity" "warning"
        "expr" "histogram_quantile(0.99, sum by (le) (rate(piecemeal_webhook_review_seconds_bucket[10m]))) > 1\nand sum(increase(piecemeal_webhook_review_seconds_count[10m])) > 20"
        "summary" "One pod in a hundred waits {{ $value | humanizeDuration }} for the webhook"
        "description" "Above five seconds the API server goes on without it.") | nindent 4 }}
    {{- $leaf := ternary "86400" "14 * 86400" (eq .Values.webhook.certificates.mode "self") }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealCertificateExpires" "for" "1h" "severity" "critical"
        "expr" (printf "min(piecemeal_webhook_certificate_expiry_timestamp_seconds) - time() < %s\nor min(piecemeal_webhook_ca_expiry_timestamp_seconds > 0) - time() < 14 * 86400" $leaf)
        "summary" "A certificate of the webhook ends in {{ $value | humanizeDuration }} and was not renewed"
        "description" "After that no pod is accelerated.") | nindent 4 }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealSecretSyncLag" "for" "10m" "severity" "warning"
        "expr" "max(piecemeal_webhook_secret_lag_seconds) > 300"
        "summary" "Changes of pull secrets wait for {{ $value | humanizeDuration }}"
        "description" "Pods that start meanwhile pull with old credentials.") | nindent 4 }}
    {{- include "piecemeal.alert" (dict "root" . "name" "PiecemealSecretWritesFail" "for" "10m" "severity" "warning"
        "expr" "sum(rate(piecemeal_webhook_secret_writes_total{result=~\"failed|conflict\"}[10m])) / sum(rate(piecemeal_webhook_secret_writes_total[10m])) > 0.2\nand sum(increase(piecemeal_webhook_secret_writes_total[10m])) > 5"
        "summary" "{{ $value | humanizePercentage }} of pull secrets' copies cannot be written"
        "description" "The pods that need them start unaccelerated.") | nindent 4 }}
{{- end }}
{{- end }}

{{/* A component: no daemon of it answers in a pool that has peers. One that is Pending or deleted has no `up` at all. */}}
{{- define "piecemeal.gone" -}}
max by (pool) (up{piecemeal_component="{{ . }}"}) == 0
or count by (pool) (up{piecemeal_component="peer"}) unless on (pool) up{piecemeal_component="{{ . }}"}
{{- end }}

{{- define "piecemeal.alert" -}}
- alert: {{ .name }}
  expr: |-
    {{- .expr | nindent 4 }}
  for: {{ .for }}
  labels:
    severity: {{ .severity }}
  annotations:
    summary: {{ .summary | toRawJson }}
    description: {{ .description | toRawJson }}
    runbook_url: {{ printf "%s#%s" .root.Values.monitoring.runbookUrl (lower .name) | quote }}
{{- end }}

{{/* A duration in seconds, as daemons read it. */}}
{{- define "piecemeal.seconds" -}}
{{- $units := dict "s" 1 "sec" 1 "m" 60 "min" 60 "h" 3600 "hr" 3600 "d" 86400 "day" 86400 "days" 86400 "w" 604800 "week" 604800 "weeks" 604800 -}}
{{- $seconds := 0 -}}
{{- range regexFindAll "[0-9]+[a-z]+" (nospace .) -1 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $seconds = add $seconds (mul (trimSuffix $unit . | int64) (get $units $unit | default 0)) -}}
{{- end -}}
{{- $seconds -}}
{{- end }}

{{/* A size in bytes, as daemons read it. */}}
{{- define "piecemeal.bytes" -}}
{{- $text := toString . | nospace | trimSuffix "B" -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}
{{- $units := dict "" 1 "k" 1000 "K" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- mul (trimSuffix $unit $text | int64) (get $units $unit | int64) -}}
{{- end }}
