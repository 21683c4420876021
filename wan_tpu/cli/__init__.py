"""The command line: `wan-tpu generate | inspect`. Data go to stdout, talk to stderr."""
