"""Prepared sets and encoders for one's own programmes and notebooks, as ``skelpipe.NAME``.

Features of a prepared set by a run's encoder, those that `skelpipe evaluate` has::

    import skelpipe

    train = skelpipe.open_set("data/shards/ntu60/ctrgcn/xsub", part="train")
    encoder = skelpipe.load_encoder("runs/slim")
    for batch in train.batches(64):
        features = encoder(batch.x, batch.frames)  # of batch.keys and batch.labels

A network of one's own on views of 64 frames::

    import skelpipe
    import torch

    train = skelpipe.open_set("data/shards/ntu60/ctrgcn/xsub")
    network = torch.nn.Linear(64 * 25 * 3, len(train.classes))
    order = torch.randperm(len(train))
    for batch in train.batches(64, frames=64, places=order):
        scores = network(batch.x[:, 0].flatten(1))
        loss = torch.nn.functional.cross_entropy(scores, batch.labels)
"""
