"""The command behind deploy/wan-tpu-deploy: gcloud underneath, Python 3.9 and its library alone.

It knows nothing of wan_tpu and runs where wan_tpu is not installed. What happens on a worker is in
deploy/worker.sh, which is sent to it over ssh.
"""
