//! What a node's container runtime has to know to pull through its peer, and how that is taken back.
