"""What the evidence scripts share. Each script proves one claim about the balancer with real
peers.
"""
