{{/*
The configuration of the service for a cluster: a file of this project with the settings that differ
on Kubernetes. Everything else is as in the file.
*/}}
{{- define "embedserve.config" -}}
{{- $values := .Values -}}
{{- $text := $values.config.content | default (.Files.Get (printf "files/%s.yaml" $values.config.name)) -}}
{{- if not $text }}{{ fail (printf "config.name: there is no configuration %q; take cpu or gpu, or set config.content" $values.config.name) }}{{ end -}}
{{- $config := fromYaml $text -}}
{{- if hasKey $config "Error" }}{{ fail (printf "config.content: %s" (get $config "Error")) }}{{ end -}}
{{- $_ := set $config "proxy_location" "EveryNode" -}}
{{- $_ := set $config.http_options "host" "0.0.0.0" -}}
{{- $env := $config.controller_options.runtime_env.env_vars -}}
{{- $_ := set $env "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S" (toString $values.drain.loadBalancerSeconds) -}}
{{- $application := first $config.applications -}}
{{- $args := $application.args | default dict -}}
{{- $_ := set $application "args" $args -}}
{{- if $values.config.precision }}{{ $_ := set $args "precision" $values.config.precision }}{{ end -}}
{{- $cache := $args.cache | default dict -}}
{{- $_ := set $args "cache" $cache -}}
{{- $_ := set $cache "url" ($values.cache.url | default (printf "redis://%s-cache:6379/0" .Release.Name)) -}}
{{- if $values.cache.passwordSecret }}{{ $_ := set $cache "password_env" "EMBEDSERVE_CACHE_PASSWORD" }}{{ end -}}
{{- range $deployment := $application.deployments }}
{{- $actor := $deployment.ray_actor_options | default dict -}}
{{- $settings := $deployment.user_config | default dict -}}
{{- $scaling := $deployment.autoscaling_config -}}
{{- if or (eq $deployment.name "Ingress") (eq $deployment.name "EmbedServer") }}
{{- $access := $settings.access | default dict -}}
{{- $_ := set $settings "access" $access -}}
{{- $_ := set $access "keys_file" "/etc/embedserve/keys.yaml" -}}
{{- $_ := set $deployment "user_config" $settings -}}
{{- $_ := set $deployment "graceful_shutdown_timeout_s" (add $values.drain.loadBalancerSeconds $values.drain.requestSeconds) -}}
{{- end }}
{{- if $scaling }}
{{- $_ := set $scaling "min_replicas" $values.models.minReplicas -}}
{{- $_ := set $scaling "max_replicas" $values.models.maxReplicas -}}
{{- if not (kindIs "invalid" $values.models.cpus) }}{{ $_ := set $actor "num_cpus" $values.models.cpus }}{{ end -}}
{{- if $values.autoscaler.enabled }}
{{- $kwargs := $scaling.policy.policy_kwargs | default dict -}}
{{- $_ := set $kwargs "cluster_grows" true -}}
{{- $_ := set $scaling.policy "policy_kwargs" $kwargs -}}
{{- end }}
{{- else }}
{{- $_ := set $deployment "num_replicas" $values.ingress.replicas -}}
{{- $_ := set $deployment "max_replicas_per_node" 1 -}}
{{- $_ := set $actor "num_cpus" $values.ingress.cpus -}}
{{- end }}
{{- if $actor }}{{ $_ := set $deployment "ray_actor_options" $actor }}{{ end -}}
{{- end }}
{{- toYaml $config -}}
{{- end -}}
