{{- define "embedserve.labels" -}}
app.kubernetes.io/name: embedserve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "embedserve.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "embedserve.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* How long a pod may take to leave: the load balancer, the requests, and the end of the processes. */}}
{{- define "embedserve.gracePeriod" -}}
{{- add .Values.drain.loadBalancerSeconds .Values.drain.requestSeconds 30 -}}
{{- end -}}

{{- define "embedserve.secretEnv" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: password
{{- end -}}

{{- define "embedserve.resources" -}}
cpu: {{ .resources.cpu | quote }}
memory: {{ .resources.memory | quote }}
{{- if .gpus }}
nvidia.com/gpu: {{ .gpus }}
{{- end }}
{{- end -}}

{{/*
The parts that the pods of the head and of the workers share, below `spec` of the pod's template.
Arguments: root (the chart's context), config (the service's configuration), node (head or worker),
resources, gpus.
*/}}
{{- define "embedserve.pod" -}}
{{- $root := .root -}}
{{- $values := $root.Values -}}
{{- $port := .config.http_options.port -}}
terminationGracePeriodSeconds: {{ include "embedserve.gracePeriod" $root }}
{{- with $values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "embedserve.podSecurityContext" $root | nindent 2 }}
containers:
  - name: ray-{{ .node }}
    image: "{{ $values.image.repository }}:{{ $values.image.tag | default $root.Chart.AppVersion }}"
    imagePullPolicy: {{ $values.image.pullPolicy }}
    ports:
      - name: serve
        containerPort: {{ $port }}
      - name: metrics
        containerPort: 8080
      {{- if eq .node "head" }}
      - name: gcs-server
        containerPort: 6379
      - name: dashboard
        containerPort: 8265
      - name: client
        containerPort: 10001
      {{- end }}
    env:
      # Serve reads these in each of its processes, also in those that Ray starts before the service.
      {{- range $name, $value := .config.controller_options.runtime_env.env_vars }}
      {{- if hasPrefix "RAY_SERVE_" $name }}
      - name: {{ $name }}
        value: {{ $value | quote }}
      {{- end }}
      {{- end }}
      {{- if $values.cache.passwordSecret }}
      {{- include "embedserve.secretEnv" (dict "name" "EMBEDSERVE_CACHE_PASSWORD" "secret" $values.cache.passwordSecret) | nindent 6 }}
      {{- end }}
    {{- if and $values.providers.secret (eq .node "worker") }}
    envFrom:
      - secretRef:
          name: {{ $values.providers.secret }}
    {{- end }}
    securityContext:
      {{- include "embedserve.securityContext" $root | nindent 6 }}
    # Ray on this node, and on the head its control too.
    livenessProbe:
      httpGet:
        path: /api/healthz
        port: 52365
      initialDelaySeconds: 30
      periodSeconds: 5
      timeoutSeconds: 5
      failureThreshold: 24
    readinessProbe:
      httpGet:
        {{- if eq .node "head" }}
        path: /api/healthz
        port: 52365
        {{- else }}
        # HAProxy: 503 until an Ingress is up, and while this node drains.
        path: /-/healthz
        port: {{ $port }}
        {{- end }}
      initialDelaySeconds: 10
      periodSeconds: 5
      timeoutSeconds: 5
      failureThreshold: {{ eq .node "head" | ternary 10 2 }}
    {{- if eq .node "worker" }}
    lifecycle:
      preStop:
        exec:
          # Serve starts replacements on other nodes, then stops the replicas here, and HAProxy fails its
          # health check. Ray itself ends after this command, when the container gets SIGTERM.
          command:
            - /bin/bash
            - -c
            - >-
              ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the pod leaves"
              --deadline-remaining-seconds {{ add $values.drain.loadBalancerSeconds $values.drain.requestSeconds }};
              sleep {{ add $values.drain.loadBalancerSeconds $values.drain.requestSeconds }}
    {{- end }}
    # Limits equal to the requests: without a limit Ray takes all CPUs of the machine for its own.
    resources:
      requests:
        {{- include "embedserve.resources" . | nindent 8 }}
      limits:
        {{- include "embedserve.resources" . | nindent 8 }}
    volumeMounts:
      - name: keys
        mountPath: /etc/embedserve
        readOnly: true
      - name: home
        mountPath: /var/lib/embedserve
      - name: tmp
        mountPath: /tmp
      - name: shm
        mountPath: /dev/shm
volumes:
  - name: keys
    secret:
      secretName: {{ $values.keys.secret }}
  - name: home
    emptyDir: {}
  - name: tmp
    emptyDir: {}
  - name: shm
    emptyDir:
      medium: Memory
      sizeLimit: {{ div (mul $values.objectStore.bytes 5) 4 }}
{{- end -}}
