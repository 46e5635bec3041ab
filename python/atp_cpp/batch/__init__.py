"""Captions of many images: what goes in, who works when, and what comes out.

In the order the data takes: :mod:`inputs` names the images (:mod:`folders`, :mod:`patterns`,
:mod:`lists`, :mod:`tars`, :mod:`shard`), each an :class:`~atp_cpp.batch.item.Item`; :mod:`loading`
opens them in threads.
"""
