"""What runs inside a sandbox: a program, and the judge that its process can't reach.

The judge forks the program's process before it has read anything, makes itself unreadable (no ptrace, no /proc/PID/mem
or fd), and only then reads the task: the program never holds tests that run apart, nor the secret that marks a verdict.
"""

import os


def main():
    """Fork, and be judge or program."""
    from .codec import Channel
    from .judge import judge
    from .program import work

    calls, replies = os.pipe(), os.pipe()
    child = os.fork()
    if child:
        os.close(calls[0])
        os.close(replies[1])
        judge(child, Channel(replies[0], calls[1]))
    else:
        os.close(calls[1])
        os.close(replies[0])
        work(Channel(calls[0], replies[1]))
