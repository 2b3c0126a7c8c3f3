{{/* What contradicts itself is said before anything is made. What a single value may be is for values.schema.json to say. */}}
{{- define "piecemeal.check" -}}
{{- $p2p := .Values.p2p -}}
{{- $plus := $p2p.plusMode -}}
{{- $pools := include "piecemeal.pools" . | fromJsonArray -}}
{{- if not $plus.enable -}}
{{- $set := list -}}
{{- if ne $plus.downloadPattern "p2p" }}{{ $set = append $set "downloadPattern" }}{{ end -}}
{{- if $plus.cacheHostPath }}{{ $set = append $set "cacheHostPath" }}{{ end -}}
{{- if ne (first $pools).slug "default" }}{{ $set = append $set "edgeNodePools" }}{{ end -}}
{{- if $plus.ossInternetAccelerate }}{{ $set = append $set "ossInternetAccelerate" }}{{ end -}}
{{- if $plus.nodeSelectorEnable }}{{ $set = append $set "nodeSelectorEnable" }}{{ end -}}
{{- with $set -}}
{{- fail (printf "p2p.plusMode.enable=false removes all that p2p.plusMode is about, and yet p2p.plusMode.%s is set: leave that out, or, to stop accelerating for a while, set webhook.enabled=false instead" (join ", ." .)) -}}
{{- end -}}
{{- else -}}
{{- if not (include "piecemeal.list" $p2p.registryInstances | fromJsonArray) -}}
{{- if .Release.IsUpgrade -}}
{{- fail "p2p.registryInstances is not set. An upgrade with --set or --values forgets what was set before: add --reuse-values (or, for another version of the chart, --reset-then-reuse-values)" -}}
{{- end -}}
{{- fail "p2p.registryInstances is not set: name what is to be accelerated, as in --set p2p.registryInstances=docker.io, or with the id of an instance, --set p2p.registryInstances=cri-xxx. Commas are escaped: --set p2p.registryInstances='cri-xxx\\,cri-yyy'" -}}
{{- end -}}
{{- end -}}
{{- if has (int $p2p.port) (list 65002 65003) -}}
{{- fail (printf "p2p.port=%d is taken by the peer itself, which uses 65002 and 65003 besides; choose another" (int $p2p.port)) -}}
{{- end -}}
{{- if eq $plus.downloadPattern "source" -}}
{{- range list "nodeSelector" "affinity" "tolerations" "extraArgs" "extraEnv" "podAnnotations" "podLabels" -}}
{{- if index $.Values.scheduler . -}}{{- fail (printf "p2p.plusMode.downloadPattern=source deploys no scheduler, and yet scheduler.%s is set: leave that out, or choose p2p" .) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.mirror.persistence.enabled $plus.cacheHostPath -}}
{{- fail "p2p.plusMode.cacheHostPath and mirror.persistence.enabled are two places for one cache: choose one" -}}
{{- end -}}
{{- if ne (empty .Values.keys.existingAuthoritySecret) (empty .Values.keys.existingJoinSecret) -}}
{{- fail "keys.existingAuthoritySecret and keys.existingJoinSecret hold two halves of one site: give both, or neither" -}}
{{- end -}}
{{- $certificates := .Values.webhook.certificates -}}
{{- if and $certificates.existingSecret (ne $certificates.mode "existingSecret") -}}
{{- fail (printf "webhook.certificates.existingSecret is set and webhook.certificates.mode is %s: set mode=existingSecret to use it, or leave it out" $certificates.mode) -}}
{{- end -}}
{{- if and (eq $certificates.mode "existingSecret") (not (and $certificates.existingSecret $certificates.caBundle)) -}}
{{- fail "webhook.certificates.mode=existingSecret needs webhook.certificates.existingSecret (tls.crt and tls.key) and webhook.certificates.caBundle (who signed it, PEM in base64)" -}}
{{- end -}}
{{- if and $certificates.caBundle (ne $certificates.mode "existingSecret") -}}
{{- fail (printf "webhook.certificates.caBundle is set and webhook.certificates.mode is %s, which knows its own authority: leave it out" $certificates.mode) -}}
{{- end -}}
{{- if and $certificates.issuerRef (ne $certificates.mode "certManager") -}}
{{- fail (printf "webhook.certificates.issuerRef is for webhook.certificates.mode=certManager, and mode is %s" $certificates.mode) -}}
{{- end -}}
{{- if and (has "auto" .Values.node.runtime) (gt (len .Values.node.runtime) 1) -}}
{{- fail "node.runtime: auto finds every runtime, so that nothing else belongs beside it" -}}
{{- end -}}
{{- if and (eq .Values.webhook.nameStyle "mirror") (eq .Values.node.names "accelerated") -}}
{{- fail "webhook.nameStyle=mirror leaves images' names as they are, and node.names=accelerated sets nodes up for other names: leave node.names out" -}}
{{- end -}}
{{- range list "peer" "mirror" "scheduler" "webhook" "node" -}}
{{- if dig "nodeAffinity" "requiredDuringSchedulingIgnoredDuringExecution" dict (index $.Values . "affinity") -}}
{{- fail (printf "%s.affinity.nodeAffinity: what is required of nodes follows from p2p.plusMode; use %s.nodeSelector to narrow it, or preferredDuringSchedulingIgnoredDuringExecution" . .) -}}
{{- end -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.upstreams -}}
{{- if has .name $names -}}{{- fail (printf "upstreams: %s is there twice; one entry may have several urls" .name) -}}{{- end -}}
{{- $names = append $names .name -}}
{{- if and .serveSite (not .credentialsSecret) -}}{{- fail (printf "upstreams: %s has serveSite and no credentialsSecret to serve the site with" .name) -}}{{- end -}}
{{- end -}}
{{- end }}
