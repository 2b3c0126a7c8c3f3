{{/* Refuses values that contradict each other, before any object is created. values.schema.json checks single values. */}}
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
{{- range $of, $path := dict "peer.cacheHostPath" .Values.peer.cacheHostPath "p2p.plusMode.cacheHostPath" $plus.cacheHostPath -}}
{{- if or (eq (clean $path) "/") (regexMatch "^/(bin|boot|dev|etc|lib|lib32|lib64|proc|run|sbin|sys|usr)(/|$)" (clean $path)) -}}
{{- fail (printf "%s=%s: that is the system's own, and would fill up with content; name a folder for it, such as /var/lib/piecemeal" $of $path) -}}
{{- end -}}
{{- end -}}
{{- range $extra := .Values.node.extraHostPaths -}}
{{- $path := clean $extra -}}
{{- range include "piecemeal.node.paths.own" $ | fromJsonArray -}}
{{- if or (eq $path "/") (eq $path .path) (and (not .only) (hasPrefix (printf "%s/" (trimSuffix "/" .path)) $path)) -}}
{{- fail (printf "node.extraHostPaths: %s is or would be mounted already; leave it out, and name single folders only" $extra) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.service.ipFamilyPolicy "SingleStack") (gt (len .Values.service.ipFamilies) 1) -}}
{{- fail "service.ipFamilyPolicy=SingleStack has one family, and service.ipFamilies has two: leave one out, or choose PreferDualStack" -}}
{{- end -}}
{{- $labels := dict "commonLabels" .Values.commonLabels -}}
{{- range list "peer" "mirror" "scheduler" "webhook" "node" }}{{ $_ := set $labels (printf "%s.podLabels" .) (index $.Values . "podLabels") }}{{ end -}}
{{- range $of, $set := $labels -}}
{{- range $key, $_ := $set -}}
{{- if regexMatch "^(app\\.kubernetes\\.io/(name|instance|component|version|managed-by)|helm\\.sh/chart|piecemeal\\.dev/.+)$" $key -}}
{{- fail (printf "%s: the label %s is the chart's own, by which Services and controllers find their pods; choose another" $of $key) -}}
{{- end -}}
{{- end -}}
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
{{- include "piecemeal.port.check" (list "upstreams" .name) -}}
{{- if and .tokenServers (not .credentialsSecret) -}}{{- fail (printf "upstreams: %s has tokenServers and no credentialsSecret to ask them with" .name) -}}{{- end -}}
{{- if and .serveSite (not .credentialsSecret) -}}{{- fail (printf "upstreams: %s has serveSite and no credentialsSecret to serve the site with" .name) -}}{{- end -}}
{{- end -}}
{{- end }}

{{/* [of what, registry]: its port, if it has one, is a port. */}}
{{- define "piecemeal.port.check" -}}
{{- $port := regexFind ":[0-9]+$" (index . 1) | trimPrefix ":" -}}
{{- if $port -}}
{{- if or (gt (len $port) 5) (gt (int64 $port) 65535) (eq (int64 $port) 0) -}}
{{- fail (printf "%s: %q: there is no port %s; ports are 1 to 65535" (index . 0) (index . 1) $port) -}}
{{- end -}}
{{- end -}}
{{- end }}
